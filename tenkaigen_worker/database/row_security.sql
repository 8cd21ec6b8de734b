-- The queries of row_security.py.

-- name: users_are_apart
-- No index: the catalog of six tables. The condition is the one under which migration 025 does anything.
SELECT CASE
    WHEN to_regrole('anon') IS NULL OR to_regrole('authenticated') IS NULL OR to_regrole('service_role') IS NULL
        OR to_regprocedure('auth.uid()') IS NULL
    THEN NULL
    ELSE (SELECT count(*) FROM pg_trigger WHERE tgname = 'generation_jobs_guard') = 1
        AND (
            SELECT bool_and(relrowsecurity)
            FROM pg_class
            WHERE oid IN (
                'public.generation_jobs'::regclass, 'public.generation_settings'::regclass,
                'public.generation_user_limits'::regclass, 'public.generation_workers'::regclass,
                'public.generation_api_keys'::regclass, 'public.tenkaigen_migrations'::regclass
            )
        )
    END;
