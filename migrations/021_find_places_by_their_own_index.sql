-- A new job's place must not cost more because others have filled the queue.
--
-- Asked for "this user, this priority, latest first", the planner may walk generation_jobs_queued_idx instead, past
-- everybody's jobs, as long as it believes that the queue is empty: it looked before the queue was filled. Asked for the
-- last entry of generation_jobs_place_idx that is not after this one, nothing else gives this order, and sorting the
-- whole queue instead is ruled out.
CREATE OR REPLACE FUNCTION public.generation_jobs_place() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET enable_sort = off AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    spacing interval;
    next_place timestamptz;
BEGIN
    IF NEW.status = 'queued' THEN
        IF NEW.user_id IS NOT NULL THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('generation_jobs ' || NEW.user_id, 0));
        END IF;

        SELECT fair_spacing INTO spacing FROM public.generation_settings;
        SELECT CASE WHEN last.owner = coalesce(NEW.user_id, nobody)
                AND last.priority = NEW.priority
                AND last.scheduled = (NEW.run_at > NEW.created_at)::integer
            THEN last.fair_at + last.count * spacing END
        INTO next_place
        FROM (
            SELECT coalesce(user_id, '00000000-0000-0000-0000-000000000000') AS owner,
                priority, (run_at > created_at)::integer AS scheduled, fair_at, count
            FROM public.generation_jobs
            WHERE status = 'queued'
                AND (
                    coalesce(user_id, '00000000-0000-0000-0000-000000000000'),
                    priority, (run_at > created_at)::integer, fair_at
                ) <= (coalesce(NEW.user_id, nobody), NEW.priority, (NEW.run_at > NEW.created_at)::integer, 'infinity')
            ORDER BY coalesce(user_id, '00000000-0000-0000-0000-000000000000') DESC,
                priority DESC, (run_at > created_at)::integer DESC, fair_at DESC
            LIMIT 1
        ) AS last;
    END IF;

    NEW.fair_at := greatest(NEW.run_at, next_place);
    RETURN NEW;
END
$$;
