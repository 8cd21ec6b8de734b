-- On Supabase everybody who holds the public key reaches the database: row-level security, grants, and what users may do.
--
-- All of it stands in one block that ends at once where there are no such users: on a plain PostgreSQL nothing changes,
-- and whoever was granted something keeps it.
--
-- Users hold two privileges on one table: SELECT of whole rows, and INSERT. Column privileges would not do for SELECT:
-- they make "select *" and "insert ... returning *" fail. So no column of this table may hold a secret.

DO $supabase$
DECLARE
    jobs CONSTANT regclass := 'public.generation_jobs';
    blinded text;
    old record;
BEGIN
    IF to_regrole('anon') IS NULL OR to_regrole('authenticated') IS NULL OR to_regrole('service_role') IS NULL
        OR to_regprocedure('auth.uid()') IS NULL
    THEN
        RETURN;
    END IF;

    -- What users may not set ------------------------------------------------------------------------------------------

    -- It runs as the caller, and is the first BEFORE INSERT trigger by name: limits and places come after it.
    --
    -- user_id is filled in here and not by a default, because a default runs for everybody who inserts, and a worker's
    -- own login need not be able to call auth.uid().
    CREATE FUNCTION public.generation_jobs_guard() RETURNS trigger
    LANGUAGE plpgsql SET search_path = '' AS $guard$
    DECLARE
        latest CONSTANT timestamptz := now() + interval '30 days';
        refused text;
    BEGIN
        IF coalesce(pg_has_role(current_user, to_regrole('tenkaigen_worker'), 'USAGE'), false) THEN
            RETURN NEW;
        END IF;

        refused := concat_ws(
            ', ',
            CASE WHEN NEW.status IS DISTINCT FROM 'queued' THEN 'status' END,
            CASE WHEN NEW.priority IS DISTINCT FROM 0 THEN 'priority' END,
            CASE WHEN NEW.fair_at IS DISTINCT FROM now() THEN 'fair_at' END,
            CASE WHEN NEW.max_attempts IS DISTINCT FROM 3 THEN 'max_attempts' END,
            CASE WHEN NEW.webhook_url IS NOT NULL THEN 'webhook_url' END,
            CASE WHEN NEW.cancel_requested_at IS NOT NULL THEN 'cancel_requested_at' END,
            CASE WHEN NEW.attempt IS DISTINCT FROM 0 THEN 'attempt' END,
            CASE WHEN NEW.lease_token IS DISTINCT FROM 0 THEN 'lease_token' END,
            CASE WHEN NEW.worker_id IS NOT NULL THEN 'worker_id' END,
            CASE WHEN NEW.lease_expires_at IS NOT NULL THEN 'lease_expires_at' END,
            CASE WHEN NEW.progress IS DISTINCT FROM 0 THEN 'progress' END,
            CASE WHEN NEW.stage IS NOT NULL THEN 'stage' END,
            CASE WHEN NEW.result_url IS NOT NULL THEN 'result_url' END,
            CASE WHEN NEW.outputs IS DISTINCT FROM '[]' THEN 'outputs' END,
            CASE WHEN NEW.recipe IS NOT NULL THEN 'recipe' END,
            CASE WHEN NEW.error_code IS NOT NULL THEN 'error_code' END,
            CASE WHEN NEW.error_message IS NOT NULL THEN 'error_message' END,
            CASE WHEN NEW.processing_time_ms IS NOT NULL THEN 'processing_time_ms' END,
            CASE WHEN NEW.timings_ms IS NOT NULL THEN 'timings_ms' END,
            CASE WHEN NEW.image_data IS NOT NULL THEN 'image_data' END,
            CASE WHEN NEW.files_to_remove IS DISTINCT FROM false THEN 'files_to_remove' END,
            CASE WHEN NEW.created_at IS DISTINCT FROM now() THEN 'created_at' END,
            CASE WHEN NEW.started_at IS NOT NULL THEN 'started_at' END,
            CASE WHEN NEW.completed_at IS NOT NULL THEN 'completed_at' END
        );
        IF refused <> '' THEN
            RAISE EXCEPTION 'not for users to set: %', refused
                USING ERRCODE = 'insufficient_privilege', HINT = 'Leave these columns out.';
        END IF;

        NEW.user_id := coalesce(NEW.user_id, auth.uid());
        IF NEW.user_id IS DISTINCT FROM auth.uid() OR NEW.user_id IS NULL THEN
            RAISE EXCEPTION 'user_id must be your own'
                USING ERRCODE = 'insufficient_privilege', HINT = 'Leave it out.';
        END IF;
        IF NEW.retry_of IS NOT NULL AND NOT EXISTS (
            SELECT FROM public.generation_jobs AS earlier WHERE earlier.id = NEW.retry_of AND earlier.user_id = auth.uid()
        ) THEN
            RAISE EXCEPTION 'retry_of must be a job of your own'
                USING ERRCODE = 'insufficient_privilege', HINT = 'Leave it out.';
        END IF;

        -- A job's place begins at its run_at: one in the past would stand in front of everybody else's. Clocks differ,
        -- so it means "now" rather than an error.
        NEW.run_at := greatest(NEW.run_at, now());
        IF NEW.run_at > latest THEN
            RAISE EXCEPTION 'run_at must be within the next 30 days' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF NEW.expires_at <= NEW.run_at OR NEW.expires_at > latest THEN
            RAISE EXCEPTION 'expires_at must be after run_at and within the next 30 days'
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        RETURN NEW;
    END
    $guard$;
    COMMENT ON FUNCTION public.generation_jobs_guard() IS
        'Refuses what users may not set, and fills in whose job it is.';

    -- The owner, service_role and superusers are not subject to policies, and so not to this.
    CREATE TRIGGER generation_jobs_guard BEFORE INSERT ON public.generation_jobs
        FOR EACH ROW WHEN (row_security_active('public.generation_jobs'))
        EXECUTE FUNCTION public.generation_jobs_guard();

    -- What users may ask for ------------------------------------------------------------------------------------------

    -- With the owner's rights and a look at whose job it is, so that users need no UPDATE at all, and a repeated job keeps
    -- what the shop had set, such as its priority. PT404 and PT409 are what PostgREST answers as status 404 and 409.
    CREATE FUNCTION public.cancel_generation_job(job_id uuid) RETURNS public.generation_jobs
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $cancel$
    DECLARE
        answer public.generation_jobs;
    BEGIN
        UPDATE public.generation_jobs AS own
        SET cancel_requested_at = now()
        WHERE own.id = $1 AND own.user_id = auth.uid()
            AND own.status IN ('queued', 'processing') AND own.cancel_requested_at IS NULL
        RETURNING * INTO answer;
        IF NOT FOUND THEN
            SELECT * INTO answer FROM public.generation_jobs AS own WHERE own.id = $1 AND own.user_id = auth.uid();
        END IF;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'you have no job %', $1 USING ERRCODE = 'PT404';
        END IF;
        RETURN answer;
    END
    $cancel$;
    COMMENT ON FUNCTION public.cancel_generation_job(uuid) IS
        'Asks for a job of the calling user to be canceled, and answers its row: a queued one ends at once, a running '
        'one soon, a final one stays as it is.';

    CREATE FUNCTION public.retry_generation_job(job_id uuid) RETURNS public.generation_jobs
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $retry$
    DECLARE
        answer public.generation_jobs;
    BEGIN
        INSERT INTO public.generation_jobs (
            retry_of, user_id, prompt, negative_prompt, style, mode, width, height, seed, steps, guidance_scale, count,
            loras, franchise, template, template_variables, reference, more_references, mask, strength, metadata,
            priority, max_attempts, webhook_url
        )
        SELECT
            own.id, own.user_id, own.prompt, own.negative_prompt, own.style, own.mode, own.width, own.height, own.seed,
            own.steps, own.guidance_scale, own.count, own.loras, own.franchise, own.template, own.template_variables,
            own.reference, own.more_references, own.mask, own.strength, own.metadata, own.priority, own.max_attempts,
            own.webhook_url
        FROM public.generation_jobs AS own
        WHERE own.id = $1 AND own.user_id = auth.uid() AND own.status IN ('failed', 'canceled')
        RETURNING * INTO answer;
        IF FOUND THEN
            RETURN answer;
        END IF;

        SELECT * INTO answer FROM public.generation_jobs AS own WHERE own.id = $1 AND own.user_id = auth.uid();
        IF NOT FOUND THEN
            RAISE EXCEPTION 'you have no job %', $1 USING ERRCODE = 'PT404';
        END IF;
        RAISE EXCEPTION 'job % is %: only a failed or canceled job can be repeated', $1, answer.status
            USING ERRCODE = 'PT409';
    END
    $retry$;
    COMMENT ON FUNCTION public.retry_generation_job(uuid) IS
        'Queues the request of a failed or canceled job of the calling user again, and answers the new row.';

    -- A role for workers and APIs -------------------------------------------------------------------------------------

    -- So that none of them needs to be the owner. It inherits nothing: an API becomes "authenticated" when it acts for a
    -- user, and has none of a user's rights otherwise.
    BEGIN
        IF to_regrole('tenkaigen_worker') IS NULL THEN
            CREATE ROLE tenkaigen_worker NOLOGIN NOINHERIT;
        END IF;
        GRANT authenticated TO tenkaigen_worker;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
            NULL;
        WHEN insufficient_privilege THEN
            RAISE WARNING 'this role may not make the role tenkaigen_worker: workers and API must log in as the owner';
    END;

    -- Close everything ------------------------------------------------------------------------------------------------

    REVOKE ALL ON public.generation_jobs, public.generation_settings, public.generation_user_limits,
        public.generation_workers, public.tenkaigen_migrations
        FROM PUBLIC, anon, authenticated, service_role;
    EXECUTE format(
        'REVOKE ALL ON SEQUENCE %s FROM PUBLIC, anon, authenticated, service_role',
        pg_get_serial_sequence('public.generation_jobs', 'seq')
    );
    REVOKE ALL ON FUNCTION public.generation_jobs_place(), public.generation_jobs_cancel_queued(),
        public.generation_jobs_backoff(integer), public.generation_jobs_notify_inserted(),
        public.generation_jobs_notify(), public.generation_jobs_limit(), public.generation_jobs_files_to_remove(),
        public.generation_jobs_guard(), public.cancel_generation_job(uuid), public.retry_generation_job(uuid)
        FROM PUBLIC, anon, authenticated, service_role;

    -- A row is shown when any one policy allows it: an older one would open what ours keep closed. Restrictive policies
    -- only take away, and those for other roles are no user's.
    FOR old IN
        SELECT *, array_to_string(ARRAY(SELECT quote_ident(role) FROM unnest(roles) AS role), ', ') AS to_roles
        FROM pg_policies
        WHERE schemaname = 'public' AND tablename = 'generation_jobs' AND permissive = 'PERMISSIVE'
            AND roles && '{public,anon,authenticated}'
    LOOP
        RAISE WARNING 'dropping a policy that would widen what users may see: %', format(
            'CREATE POLICY %I ON public.generation_jobs FOR %s TO %s%s%s', old.policyname, old.cmd, old.to_roles,
            ' USING (' || old.qual || ')', ' WITH CHECK (' || old.with_check || ')'
        );
        EXECUTE format('DROP POLICY %I ON public.generation_jobs', old.policyname);
    END LOOP;

    ALTER TABLE public.generation_jobs ENABLE ROW LEVEL SECURITY;
    ALTER TABLE public.generation_settings ENABLE ROW LEVEL SECURITY;
    ALTER TABLE public.generation_user_limits ENABLE ROW LEVEL SECURITY;
    ALTER TABLE public.generation_workers ENABLE ROW LEVEL SECURITY;
    ALTER TABLE public.tenkaigen_migrations ENABLE ROW LEVEL SECURITY;

    -- Open what is needed ---------------------------------------------------------------------------------------------

    -- The sub-select is asked once a statement, not once a row; generation_jobs_by_user_idx finds the rows.
    CREATE POLICY generation_jobs_users_see_their_own ON public.generation_jobs
        FOR SELECT TO authenticated USING (user_id = (SELECT auth.uid()));
    CREATE POLICY generation_jobs_users_insert_their_own ON public.generation_jobs
        FOR INSERT TO authenticated WITH CHECK (user_id = (SELECT auth.uid()));

    GRANT SELECT ON public.generation_jobs TO authenticated;

    -- What a request may say; and then what the guard refuses, in better words than "permission denied for table". A
    -- column that stands in neither, such as one of the shop's own, is closed until somebody grants it.
    GRANT INSERT (
        id, user_id, prompt, negative_prompt, style, mode, width, height, seed, steps, guidance_scale, count, loras,
        franchise, template, template_variables, reference, more_references, mask, strength, metadata, run_at, expires_at,
        idempotency_key, request_hash, retry_of
    ) ON public.generation_jobs TO authenticated;
    GRANT INSERT (
        status, priority, fair_at, max_attempts, webhook_url, cancel_requested_at, attempt, lease_token, worker_id,
        lease_expires_at, progress, stage, result_url, outputs, recipe, error_code, error_message, processing_time_ms,
        timings_ms, image_data, files_to_remove, created_at, started_at, completed_at
    ) ON public.generation_jobs TO authenticated;
    GRANT EXECUTE ON FUNCTION public.cancel_generation_job(uuid), public.retry_generation_job(uuid) TO authenticated;

    GRANT SELECT, INSERT, UPDATE, DELETE ON public.generation_jobs, public.generation_settings,
        public.generation_user_limits, public.generation_workers TO service_role;
    GRANT SELECT ON public.tenkaigen_migrations TO service_role;
    GRANT EXECUTE ON FUNCTION public.generation_jobs_backoff(integer) TO service_role;

    IF to_regrole('tenkaigen_worker') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA public TO tenkaigen_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON public.generation_jobs, public.generation_workers TO tenkaigen_worker;
        GRANT SELECT ON public.generation_settings, public.generation_user_limits, public.tenkaigen_migrations
            TO tenkaigen_worker;
        GRANT EXECUTE ON FUNCTION public.generation_jobs_backoff(integer) TO tenkaigen_worker;

        CREATE POLICY generation_jobs_workers ON public.generation_jobs TO tenkaigen_worker USING (true);
        CREATE POLICY generation_workers_workers ON public.generation_workers TO tenkaigen_worker USING (true);
        CREATE POLICY generation_settings_workers ON public.generation_settings
            FOR SELECT TO tenkaigen_worker USING (true);
        CREATE POLICY generation_user_limits_workers ON public.generation_user_limits
            FOR SELECT TO tenkaigen_worker USING (true);
        CREATE POLICY tenkaigen_migrations_workers ON public.tenkaigen_migrations
            FOR SELECT TO tenkaigen_worker USING (true);
    END IF;

    -- Whoever was granted the table by hand would now wonder where the jobs are.
    SELECT string_agg(DISTINCT quote_ident(r.rolname), ', ') INTO blinded
    FROM pg_class c, aclexplode(c.relacl) AS acl, pg_roles r
    WHERE c.oid = jobs AND r.oid = acl.grantee AND acl.grantee <> c.relowner AND NOT r.rolbypassrls AND NOT r.rolsuper
        AND r.rolname NOT IN ('anon', 'authenticated')
        AND NOT EXISTS (
            SELECT FROM pg_policies
            WHERE schemaname = 'public' AND tablename = 'generation_jobs' AND r.rolname = ANY (roles)
        );
    IF blinded IS NOT NULL THEN
        RAISE WARNING 'row-level security now hides all jobs from %, which must have a policy of its own, such as: '
            'CREATE POLICY ... ON public.generation_jobs TO ... USING (true)', blinded;
    END IF;

    -- Realtime --------------------------------------------------------------------------------------------------------

    -- The replica identity stays the primary key: Realtime shows changed rows to those whose policies let them see them,
    -- but tells every subscriber the identity of deleted ones.
    BEGIN
        IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'supabase_realtime' AND NOT puballtables)
            AND NOT EXISTS (
                SELECT FROM pg_publication_tables
                WHERE pubname = 'supabase_realtime' AND schemaname = 'public' AND tablename = 'generation_jobs'
            )
        THEN
            ALTER PUBLICATION supabase_realtime ADD TABLE public.generation_jobs;
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'this role may not change the publication supabase_realtime, so Realtime does not tell of jobs; '
            'turn it on for generation_jobs in the dashboard';
    END;
END
$supabase$;
