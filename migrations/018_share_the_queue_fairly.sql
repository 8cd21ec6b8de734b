-- Nobody waits behind somebody else's thousand jobs: places that are spread, and limits for users.

-- What the shop may turn ---------------------------------------------------------------------------------------------

CREATE TABLE public.generation_settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    fair_spacing interval NOT NULL DEFAULT '5 minutes' CHECK (fair_spacing BETWEEN '0' AND '1 day'),
    max_queued_per_user integer CHECK (max_queued_per_user > 0),
    max_per_minute_per_user integer CHECK (max_per_minute_per_user > 0),
    max_pictures_per_day_per_user integer CHECK (max_pictures_per_day_per_user > 0)
);
INSERT INTO public.generation_settings DEFAULT VALUES;

COMMENT ON TABLE public.generation_settings IS
    'One row of settings, which jobs that come by SQL and by HTTP obey alike, from the next INSERT on.';
COMMENT ON COLUMN public.generation_settings.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN public.generation_settings.fair_spacing IS
    'How far apart the places of one user''s jobs are, for each picture. Several times what the slowest picture takes; '
    '0 is first come, first served.';
COMMENT ON COLUMN public.generation_settings.max_queued_per_user IS
    'How many jobs of one user may be queued at once; null is no limit. Jobs without a user have no limits.';
COMMENT ON COLUMN public.generation_settings.max_per_minute_per_user IS
    'How many jobs one user may insert within 60 seconds; null is no limit.';
COMMENT ON COLUMN public.generation_settings.max_pictures_per_day_per_user IS
    'How many pictures one user may ask for within 24 hours, failed and canceled jobs left out; null is no limit.';

CREATE TABLE public.generation_user_limits (
    user_id uuid PRIMARY KEY,
    max_queued integer CHECK (max_queued > 0),
    max_per_minute integer CHECK (max_per_minute > 0),
    max_pictures_per_day integer CHECK (max_pictures_per_day > 0)
);

COMMENT ON TABLE public.generation_user_limits IS
    'Limits of single users, in place of those in generation_settings. Null is the limit of everybody: to lift one, '
    'write a number that nobody reaches.';
COMMENT ON COLUMN public.generation_user_limits.user_id IS 'Whose limits these are.';
COMMENT ON COLUMN public.generation_user_limits.max_queued IS 'In place of max_queued_per_user.';
COMMENT ON COLUMN public.generation_user_limits.max_per_minute IS 'In place of max_per_minute_per_user.';
COMMENT ON COLUMN public.generation_user_limits.max_pictures_per_day IS 'In place of max_pictures_per_day_per_user.';

-- Older Supabase projects grant every new table to everybody who holds the public key.
DO $$
DECLARE
    visitor text;
BEGIN
    FOR visitor IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON public.generation_settings, public.generation_user_limits FROM %I', visitor);
    END LOOP;
END
$$;

-- The place ----------------------------------------------------------------------------------------------------------

-- A user's last place, found as the last entry of a range, however many users and jobs there are. Jobs without a user
-- share the nil id, because IS NOT DISTINCT FROM cannot use an index. What is scheduled for later has a row of places
-- of its own: otherwise a job for next week would put today's behind it.
CREATE INDEX generation_jobs_place_idx ON public.generation_jobs (
    coalesce(user_id, '00000000-0000-0000-0000-000000000000'), priority, ((run_at > created_at)::integer), fair_at
) WHERE status = 'queued';

-- With the owner's rights: where policies hide other rows, the caller's would not do.
--
-- The function is volatile, so it sees the rows that its own statement has inserted before, and after waiting for the
-- lock those of the transaction that had it. Jobs without a user wait for nobody: among them, two that come at the
-- same moment may have the same place, and their order of insertion decides.
CREATE OR REPLACE FUNCTION public.generation_jobs_place() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    spacing interval;
    next_place timestamptz;
BEGIN
    IF NEW.status = 'queued' THEN
        IF NEW.user_id IS NOT NULL THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('generation_jobs ' || NEW.user_id, 0));
        END IF;

        SELECT fair_spacing INTO spacing FROM public.generation_settings;
        SELECT fair_at + count * spacing INTO next_place
        FROM public.generation_jobs
        WHERE status = 'queued'
            AND coalesce(user_id, '00000000-0000-0000-0000-000000000000')
                = coalesce(NEW.user_id, '00000000-0000-0000-0000-000000000000')
            AND priority = NEW.priority
            AND (run_at > created_at)::integer = (NEW.run_at > NEW.created_at)::integer
        ORDER BY fair_at DESC
        LIMIT 1;
    END IF;

    NEW.fair_at := greatest(NEW.run_at, next_place);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_place() IS
    'Gives a new job its place in the queue: run_at, or behind what its user has queued already.';

COMMENT ON COLUMN public.generation_jobs.fair_at IS
    'Place in the queue among jobs of the same priority; set by a trigger. Not a time to wait for: without others in '
    'front, a job runs at once.';

-- The limits ---------------------------------------------------------------------------------------------------------

-- PT429 is what PostgREST answers as status 429. The message is for people; the detail, where it helps to wait, is the
-- number of seconds, for programs.
CREATE FUNCTION public.generation_jobs_limit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    max_queued integer;
    max_per_minute integer;
    max_pictures integer;
    reached text;
    free_at timestamptz;
    seconds integer;
BEGIN
    SELECT coalesce(own.max_queued, everybody.max_queued_per_user),
        coalesce(own.max_per_minute, everybody.max_per_minute_per_user),
        coalesce(own.max_pictures_per_day, everybody.max_pictures_per_day_per_user)
    INTO max_queued, max_per_minute, max_pictures
    FROM (SELECT NEW.user_id) AS asking
    LEFT JOIN public.generation_settings AS everybody ON true
    LEFT JOIN public.generation_user_limits AS own USING (user_id);
    IF num_nonnulls(max_queued, max_per_minute, max_pictures) = 0 THEN
        RETURN NEW;
    END IF;

    -- Otherwise two that come at once would both be the last that is allowed.
    PERFORM pg_advisory_xact_lock(hashtextextended('generation_jobs ' || NEW.user_id, 0));

    -- A key that is taken: ON CONFLICT will find the job that is there, and nothing is added.
    IF EXISTS (
        SELECT FROM public.generation_jobs
        WHERE coalesce(user_id, '00000000-0000-0000-0000-000000000000') = NEW.user_id
            AND idempotency_key = NEW.idempotency_key
    ) THEN
        RETURN NEW;
    END IF;

    IF max_pictures IS NOT NULL THEN
        -- The latest of the jobs that must be a day old before this one fits.
        SELECT recent.created_at + interval '1 day' INTO free_at
        FROM (
            SELECT created_at, sum(count) OVER (ORDER BY created_at DESC, seq DESC) AS pictures
            FROM public.generation_jobs
            WHERE user_id = NEW.user_id AND created_at > now() - interval '1 day'
                AND status NOT IN ('failed', 'canceled')
        ) AS recent
        WHERE recent.pictures + NEW.count > max_pictures
        ORDER BY recent.created_at DESC
        LIMIT 1;
        IF FOUND OR NEW.count > max_pictures THEN
            reached := format('ask for at most %s pictures a day', max_pictures);
        END IF;
    END IF;

    IF reached IS NULL AND max_queued IS NOT NULL THEN
        PERFORM FROM public.generation_jobs
        WHERE status = 'queued' AND coalesce(user_id, '00000000-0000-0000-0000-000000000000') = NEW.user_id
        LIMIT 1 OFFSET max_queued - 1;
        IF FOUND THEN
            reached := format('have at most %s jobs queued', max_queued);
            free_at := now() + interval '1 minute';
        END IF;
    END IF;

    IF reached IS NULL AND max_per_minute IS NOT NULL THEN
        SELECT created_at + interval '1 minute' INTO free_at
        FROM public.generation_jobs
        WHERE user_id = NEW.user_id AND created_at > now() - interval '1 minute'
        ORDER BY created_at DESC
        LIMIT 1 OFFSET max_per_minute - 1;
        IF FOUND THEN
            reached := format('queue at most %s jobs a minute', max_per_minute);
        END IF;
    END IF;

    IF reached IS NULL THEN
        RETURN NEW;
    END IF;
    IF NEW.count > max_pictures THEN
        RAISE EXCEPTION 'user % may %, and this job alone asks for %', NEW.user_id, reached, NEW.count
            USING ERRCODE = 'PT429';
    END IF;
    seconds := greatest(1, ceil(extract(epoch FROM free_at - now())));
    RAISE EXCEPTION 'user % may %; try again in % seconds', NEW.user_id, reached, seconds
        USING ERRCODE = 'PT429', DETAIL = seconds;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_limit() IS
    'Refuses a new job of a user who has as many as generation_settings and generation_user_limits allow.';

CREATE TRIGGER generation_jobs_limit BEFORE INSERT ON public.generation_jobs
    FOR EACH ROW WHEN (NEW.status = 'queued' AND NEW.user_id IS NOT NULL)
    EXECUTE FUNCTION public.generation_jobs_limit();
