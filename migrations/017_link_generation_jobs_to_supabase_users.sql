-- On Supabase a job belongs to a user of auth.users; elsewhere user_id is a plain id.

-- One user's jobs, the latest first; deleting a user looks here too.
CREATE INDEX generation_jobs_by_user_idx ON public.generation_jobs (user_id, created_at DESC)
    WHERE user_id IS NOT NULL;

DO $$
BEGIN
    IF to_regclass('auth.users') IS NULL OR EXISTS (
        SELECT FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = 'public.generation_jobs'::regclass AND c.contype = 'f' AND a.attname = 'user_id'
    ) THEN
        RETURN;
    END IF;

    -- NOT VALID: a table made before may hold jobs of users who are gone. A finished design outlives its user.
    ALTER TABLE public.generation_jobs ADD CONSTRAINT generation_jobs_user_id_is_a_user
        FOREIGN KEY (user_id) REFERENCES auth.users (id) ON DELETE SET NULL NOT VALID;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'this role may not refer to auth.users, so user_id is not checked against it';
END
$$;
