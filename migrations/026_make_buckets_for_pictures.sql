-- Where Supabase Storage is, the buckets that files go to. Only workers and the API write there, with the project's secret
-- key, which no policy binds; a user may read what lies in their own folder.

DO $$
BEGIN
    IF to_regclass('storage.buckets') IS NULL THEN
        RETURN;
    END IF;

    -- A bucket that is there stays as it is: somebody has made it public or private on purpose.
    INSERT INTO storage.buckets (id, name, public)
    VALUES ('generated-designs', 'generated-designs', true), ('generation-uploads', 'generation-uploads', false)
    ON CONFLICT DO NOTHING;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'this role may not make buckets: make generated-designs and generation-uploads by hand, the second private';
END
$$;

-- Of a public bucket everybody loads what they have the URL of; this is for a private one, and for listing. What users
-- upload is read by workers alone.
DO $$
BEGIN
    IF to_regclass('storage.objects') IS NULL OR to_regprocedure('auth.uid()') IS NULL
        OR to_regrole('authenticated') IS NULL
        OR EXISTS (
            SELECT FROM pg_policy
            WHERE polrelid = to_regclass('storage.objects') AND polname = 'own generated designs can be read'
        )
    THEN
        RETURN;
    END IF;

    -- Row-level security is on already, and nobody but Supabase may turn it on. The name of a file begins with the user's
    -- id: the first of its folders.
    CREATE POLICY "own generated designs can be read" ON storage.objects FOR SELECT TO authenticated
        USING (bucket_id = 'generated-designs' AND split_part(name, '/', 1) = (SELECT auth.uid())::text);
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'this role may not make policies on storage.objects: in a private bucket users see nothing by themselves';
END
$$;

COMMENT ON COLUMN public.generation_jobs.outputs IS
    'All pictures: index, key, url, width, height, bytes, sha256 and seed of each, with thumbnail_key and thumbnail_url.';
