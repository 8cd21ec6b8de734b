-- Keys for programs that call the API. What stands here is of no use to a thief: a key cannot be had from its digest.

CREATE TABLE public.generation_api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    sha256 bytea NOT NULL CONSTRAINT generation_api_keys_sha256_key UNIQUE,
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    CONSTRAINT generation_api_keys_name_1_to_100_characters CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT generation_api_keys_sha256_32_bytes CHECK (octet_length(sha256) = 32),
    CONSTRAINT generation_api_keys_scopes_known CHECK (
        cardinality(scopes) > 0 AND scopes <@ ARRAY['submit', 'read', 'admin']
    )
);

-- The name of a revoked key may be used again.
CREATE UNIQUE INDEX generation_api_keys_name_key ON public.generation_api_keys (name) WHERE revoked_at IS NULL;

COMMENT ON TABLE public.generation_api_keys IS 'Keys for programs that call the HTTP API, made by tenkaigen keys.';
COMMENT ON COLUMN public.generation_api_keys.id IS 'The key.';
COMMENT ON COLUMN public.generation_api_keys.name IS 'What it is called.';
COMMENT ON COLUMN public.generation_api_keys.sha256 IS
    'SHA-256 of the key. Its 256 random bits cannot be guessed, so a slow hash would protect nothing.';
COMMENT ON COLUMN public.generation_api_keys.scopes IS 'What it may do: submit, read, admin.';
COMMENT ON COLUMN public.generation_api_keys.created_at IS 'When it was made.';
COMMENT ON COLUMN public.generation_api_keys.expires_at IS 'When it counts no more; null is never.';
COMMENT ON COLUMN public.generation_api_keys.revoked_at IS 'When it was revoked.';
COMMENT ON COLUMN public.generation_api_keys.last_used_at IS 'When it was last used, right to an hour.';

-- On Supabase nobody reaches it but the owner and the API's own role, also where a project grants new tables to all.
DO $$
DECLARE
    visitor text;
BEGIN
    FOR visitor IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated', 'service_role') LOOP
        EXECUTE format('REVOKE ALL ON public.generation_api_keys FROM %I', visitor);
        ALTER TABLE public.generation_api_keys ENABLE ROW LEVEL SECURITY;
    END LOOP;
    IF to_regrole('tenkaigen_worker') IS NOT NULL THEN
        GRANT SELECT, INSERT, UPDATE ON public.generation_api_keys TO tenkaigen_worker;
        CREATE POLICY generation_api_keys_workers ON public.generation_api_keys TO tenkaigen_worker USING (true);
    END IF;
END
$$;
