-- What maintenance removes: files that no row names and, where that is asked for, jobs that are old.

-- Files of jobs that ended without a picture, whoever ended them ------------------------------------------------------

ALTER TABLE public.generation_jobs ADD COLUMN files_to_remove boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN public.generation_jobs.files_to_remove IS
    'Set by a trigger when the job ends without a picture; cleared by maintenance once storage has none of its files.';

-- Nearly always empty. No heartbeat changes the column, so they stay HOT updates.
CREATE INDEX generation_jobs_files_to_remove_idx ON public.generation_jobs (id) WHERE files_to_remove;

-- A job that somebody's hand queues again is no longer one of these: its new attempt may be storing files already.
CREATE FUNCTION public.generation_jobs_files_to_remove() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.files_to_remove := NEW.status IN ('failed', 'canceled');
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.generation_jobs_files_to_remove() IS
    'Marks a job that ends without a picture and may have left files.';

-- Triggers run in the order of their names, and WHEN sees what those before have written: this one must come after
-- generation_jobs_cancel_queued, and for the same columns. Heartbeats write neither.
CREATE TRIGGER generation_jobs_files_to_remove BEFORE UPDATE OF status, cancel_requested_at ON public.generation_jobs
    FOR EACH ROW WHEN (
        NEW.status <> OLD.status AND NEW.lease_token > 0
        AND NEW.files_to_remove <> (NEW.status IN ('failed', 'canceled'))
    )
    EXECUTE FUNCTION public.generation_jobs_files_to_remove();

-- Old jobs ------------------------------------------------------------------------------------------------------------

-- The oldest outcomes first. Written once in a job's life, at its end: neither claims nor heartbeats touch it. The BRIN
-- index on created_at would not do: rows come to lie where old ones were removed, and after that every range of pages
-- claims to hold some of the oldest.
CREATE INDEX generation_jobs_completed_idx ON public.generation_jobs (completed_at) WHERE completed_at IS NOT NULL;
