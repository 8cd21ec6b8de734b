-- The queries of upkeep.py.

-- name: rescue
-- generation_jobs_processing_idx: as many rows as run now. SKIP LOCKED, so that several maintainers share the work and
-- none waits for a worker that is just writing. A row without a lease was marked as processing by somebody else's hand. If
-- somebody wants a lost job canceled, the trigger generation_jobs_cancel_queued ends it.
WITH lost AS MATERIALIZED (
    SELECT id, attempt < max_attempts AS again
    FROM generation_jobs
    WHERE status = 'processing'
        AND coalesce(lease_expires_at, coalesce(started_at, created_at) + make_interval(secs => $1)) < now()
    ORDER BY seq
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
UPDATE generation_jobs AS job
SET status = CASE WHEN lost.again THEN 'queued' ELSE 'failed' END,
    completed_at = CASE WHEN lost.again THEN NULL ELSE now() END,
    run_at = CASE WHEN lost.again THEN now() + generation_jobs_backoff(job.attempt) ELSE job.run_at END,
    error_code = 'worker_lost',
    error_message = 'The worker that had this job was lost.',
    lease_expires_at = NULL,
    progress = 0,
    stage = NULL
FROM lost
WHERE job.id = lost.id
RETURNING job.id, job.status, job.worker_id, job.attempt, job.max_attempts;

-- name: expire
-- generation_jobs_expiring_idx.
WITH late AS MATERIALIZED (
    SELECT id
    FROM generation_jobs
    WHERE status = 'queued' AND expires_at <= now()
    ORDER BY expires_at
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
UPDATE generation_jobs AS job
SET status = 'failed',
    error_code = 'expired',
    error_message = 'This job was not started before it expired.',
    completed_at = now()
FROM late
WHERE job.id = late.id
RETURNING job.id;

-- name: with_files_to_remove
-- generation_jobs_files_to_remove_idx. In any order: maintainers share the work, and a job whose files storage does not
-- let go stands in front of nobody. A lease that still runs is of a job that somebody else's hand has ended: its worker
-- does not know yet, and may be storing a file.
SELECT id, lease_token, user_id, {named}
FROM generation_jobs
WHERE files_to_remove AND status IN ('failed', 'canceled')
    AND (lease_expires_at IS NULL OR lease_expires_at < now())
ORDER BY random()
LIMIT 100;

-- name: files_removed
-- Primary key. With the token, because a job that was queued again by hand may have new files.
UPDATE generation_jobs AS job
SET files_to_remove = false
FROM unnest($1::uuid[], $2::bigint[]) AS cleared (id, lease_token)
WHERE job.id = cleared.id AND job.lease_token = cleared.lease_token AND job.files_to_remove;

-- name: prunable
-- generation_jobs_completed_idx. Behind the place where the last look ended, so that jobs which stay, because the table
-- or storage refuses, are passed by.
SELECT completed_at, id
FROM generation_jobs
WHERE completed_at < now() - make_interval(days => $1)
    AND completed_at >= $2 AND (completed_at, id) > ($2, $3)
ORDER BY completed_at, id
LIMIT $4;

-- name: prune
-- Primary key. What another maintainer is just removing, or somebody else is writing, is left to them. A job that a hand
-- has queued again may still have its date.
DELETE FROM generation_jobs
WHERE id = (
        SELECT id
        FROM generation_jobs
        WHERE id = $1 AND status IN ('completed', 'failed', 'canceled')
            AND completed_at < now() - make_interval(days => $2)
        FOR UPDATE SKIP LOCKED
    )
RETURNING id, lease_token, user_id, {named};
