-- What makes the table a queue: the indexes, the place of a new row, and the notifications.

-- The claim: ORDER BY priority DESC, fair_at, seq LIMIT 1 reads the first entry, however many rows are finished.
CREATE INDEX generation_jobs_queued_idx ON public.generation_jobs (priority DESC, fair_at, seq)
    WHERE status = 'queued';

-- The rescue of lost jobs looks at what runs now. lease_expires_at must not be in it: heartbeats would touch the index.
CREATE INDEX generation_jobs_processing_idx ON public.generation_jobs (seq) WHERE status = 'processing';

-- The few queued jobs that can expire.
CREATE INDEX generation_jobs_expiring_idx ON public.generation_jobs (expires_at)
    WHERE status = 'queued' AND expires_at IS NOT NULL;

-- One job per key and user. Jobs without a user share the nil id, because nulls are never equal.
CREATE UNIQUE INDEX generation_jobs_idempotency_key ON public.generation_jobs
    (coalesce(user_id, '00000000-0000-0000-0000-000000000000'), idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- Deleting a job looks for its repetitions.
CREATE INDEX generation_jobs_retry_of_idx ON public.generation_jobs (retry_of) WHERE retry_of IS NOT NULL;

-- Statistics of the last hours. Rows lie on disk nearly in this order, so a few kilobytes of index are enough.
CREATE INDEX generation_jobs_recent_idx ON public.generation_jobs
    USING brin (created_at) WITH (pages_per_range = 32);

-- A default cannot look at another column. Repeated and released jobs keep the place they were given here.
CREATE FUNCTION public.generation_jobs_place() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.fair_at := NEW.run_at;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_place() IS 'Gives a new job its place in the queue.';

CREATE TRIGGER generation_jobs_place BEFORE INSERT ON public.generation_jobs
    FOR EACH ROW EXECUTE FUNCTION public.generation_jobs_place();

-- A request to cancel a job that does not run ends it at once, whoever writes it: also when the job comes back to the
-- queue from a worker that failed, released or lost it.
CREATE FUNCTION public.generation_jobs_cancel_queued() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.status := 'canceled';
    NEW.completed_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_cancel_queued() IS 'Ends a queued job that shall be canceled.';

CREATE TRIGGER generation_jobs_cancel_queued BEFORE UPDATE OF status, cancel_requested_at ON public.generation_jobs
    FOR EACH ROW WHEN (NEW.status = 'queued' AND NEW.cancel_requested_at IS NOT NULL)
    EXECUTE FUNCTION public.generation_jobs_cancel_queued();

-- How long to wait before the next attempt: 5 s, 20 s, 80 s, at most 5 minutes, give or take a quarter, so that jobs
-- that failed together do not come back together.
CREATE FUNCTION public.generation_jobs_backoff(attempt integer) RETURNS interval
LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT least(300, 5 * 4 ^ least(greatest(attempt, 1) - 1, 10)) * (0.75 + 0.5 * random()) * interval '1 second'
$$;
COMMENT ON FUNCTION public.generation_jobs_backoff(integer) IS 'The pause after the given attempt, with jitter.';

-- Notifications on channel generation_jobs: 'queued' when a job can run now, 'cancel <id>' when a running one should
-- end. A statement that inserts a thousand rows sends one; equal ones of a transaction are merged by PostgreSQL.
CREATE FUNCTION public.generation_jobs_notify_inserted() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF EXISTS (SELECT FROM inserted WHERE status = 'queued' AND run_at <= now()) THEN
        PERFORM pg_notify('generation_jobs', 'queued');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_notify_inserted() IS 'Wakes the workers, once per INSERT.';

CREATE TRIGGER generation_jobs_notify_inserted AFTER INSERT ON public.generation_jobs
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION public.generation_jobs_notify_inserted();

CREATE FUNCTION public.generation_jobs_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM pg_notify('generation_jobs', CASE NEW.status WHEN 'processing' THEN 'cancel ' || NEW.id ELSE 'queued' END);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_notify() IS
    'Wakes the workers: a job is queued again, or shall be canceled.';

-- These two look at single rows, because only a row's trigger can have a WHEN: heartbeats, claims and outcomes call
-- nothing at all.
CREATE TRIGGER generation_jobs_notify_queued AFTER UPDATE OF status, run_at ON public.generation_jobs
    FOR EACH ROW WHEN (
        NEW.status = 'queued' AND NEW.run_at <= now()
        AND (OLD.status <> 'queued' OR OLD.run_at IS DISTINCT FROM NEW.run_at)
    )
    EXECUTE FUNCTION public.generation_jobs_notify();

CREATE TRIGGER generation_jobs_notify_cancel AFTER UPDATE OF cancel_requested_at ON public.generation_jobs
    FOR EACH ROW WHEN (
        NEW.status = 'processing' AND NEW.cancel_requested_at IS NOT NULL AND OLD.cancel_requested_at IS NULL
    )
    EXECUTE FUNCTION public.generation_jobs_notify();
