-- Where a database became one of Supabase after it was migrated, 027 found nobody to close its table to. This can be
-- repeated, as 025 and 026 can.

DO $$
BEGIN
    IF to_regrole('anon') IS NULL OR to_regrole('authenticated') IS NULL OR to_regrole('service_role') IS NULL
        OR to_regprocedure('auth.uid()') IS NULL
    THEN
        RETURN;
    END IF;

    REVOKE ALL ON public.generation_api_keys FROM PUBLIC, anon, authenticated, service_role;
    ALTER TABLE public.generation_api_keys ENABLE ROW LEVEL SECURITY;
    IF to_regrole('tenkaigen_worker') IS NOT NULL THEN
        GRANT SELECT, INSERT, UPDATE ON public.generation_api_keys TO tenkaigen_worker;
        IF NOT EXISTS (
            SELECT FROM pg_policies
            WHERE schemaname = 'public' AND tablename = 'generation_api_keys'
                AND policyname = 'generation_api_keys_workers'
        ) THEN
            CREATE POLICY generation_api_keys_workers ON public.generation_api_keys TO tenkaigen_worker USING (true);
        END IF;
    END IF;
END
$$;
