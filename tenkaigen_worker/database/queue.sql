-- The queries of queue.py, each under its name. Every write after the claim is fenced: it names the lease's token, so
-- that a worker which lost its job changes nothing.

-- name: claim
-- The inner SELECT reads the first entry of generation_jobs_queued_idx that is due and that nobody else is just
-- claiming. With "= (SELECT ...)" it runs once; "IN (SELECT ... LIMIT 1)" may run again and claim more. The status is
-- checked again on the locked row: between the two, another worker may have claimed it and given it back.
--
-- Every value that comes back must be one that Python can hold, or the row would cost a claim each time: JSON, with
-- numbers of any size and nested at will, comes as text (null when empty), and dates of any year not at all.
UPDATE generation_jobs
SET status = 'processing',
    attempt = attempt + 1,
    lease_token = lease_token + 1,
    worker_id = $1,
    lease_expires_at = now() + make_interval(secs => $2),
    started_at = now(),
    progress = 0,
    stage = NULL
WHERE id = (
        SELECT id
        FROM generation_jobs
        WHERE status = 'queued' AND run_at <= now() AND (expires_at IS NULL OR expires_at > now())
        ORDER BY priority DESC, fair_at, seq
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    )
    AND status = 'queued'
RETURNING id, lease_token, user_id, attempt, max_attempts,
    prompt, negative_prompt, style, mode, width, height, seed, steps, guidance_scale, count,
    nullif(loras, '[]')::text AS loras, franchise, template, nullif(template_variables, '{}')::text AS template_variables,
    reference, more_references, mask, strength, webhook_url;

-- name: due_within
-- generation_jobs_queued_idx.
SELECT EXISTS (
    SELECT FROM generation_jobs
    WHERE status = 'queued' AND run_at <= now() + $1 AND (expires_at IS NULL OR expires_at > now())
);

-- name: heartbeat
-- Primary key, once per held job. Touches no indexed column: a HOT update.
UPDATE generation_jobs AS job
SET lease_expires_at = now() + make_interval(secs => $5),
    stage = held.stage,
    progress = held.progress
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::real[]) AS held (id, lease_token, stage, progress)
WHERE job.id = held.id AND job.lease_token = held.lease_token AND job.status = 'processing'
RETURNING job.id, job.lease_token, job.cancel_requested_at IS NOT NULL AS cancel_requested;

-- name: complete
-- Primary key.
UPDATE generation_jobs
SET status = 'completed',
    outputs = $3,
    result_url = $4,
    recipe = $5,
    timings_ms = $6,
    processing_time_ms = $7,
    width = coalesce(width, $8),
    height = coalesce(height, $9),
    seed = coalesce(seed, $10),
    progress = 1,
    stage = NULL,
    error_code = NULL,
    error_message = NULL,
    lease_expires_at = NULL,
    completed_at = now()
WHERE id = $1 AND lease_token = $2 AND status = 'processing'
RETURNING id;

-- name: completed_by
-- Primary key. Whether this very lease completed the job, and only the answer was lost.
SELECT status = 'completed' AND lease_token = $2 FROM generation_jobs WHERE id = $1;

-- name: fail
-- Primary key. A job that may be tried again keeps its place (fair_at) and why it failed. If somebody wants it canceled
-- meanwhile, the trigger generation_jobs_cancel_queued ends it instead of queueing it again.
UPDATE generation_jobs
SET status = CASE WHEN $5 AND attempt < max_attempts THEN 'queued' ELSE 'failed' END,
    completed_at = CASE WHEN $5 AND attempt < max_attempts THEN NULL ELSE now() END,
    run_at = CASE WHEN $5 AND attempt < max_attempts THEN now() + generation_jobs_backoff(attempt) ELSE run_at END,
    error_code = $3,
    error_message = $4,
    lease_expires_at = NULL,
    progress = 0,
    stage = NULL
WHERE id = $1 AND lease_token = $2 AND status = 'processing'
RETURNING status;

-- name: release
-- Primary key. Gives the attempt back; the token is never given back. The same trigger as above.
UPDATE generation_jobs
SET status = 'queued',
    run_at = now() + $3,
    attempt = greatest(attempt - 1, 0),
    lease_expires_at = NULL,
    progress = 0,
    stage = NULL
WHERE id = $1 AND lease_token = $2 AND status = 'processing'
RETURNING id;

-- name: cancel
-- Primary key.
UPDATE generation_jobs
SET status = 'canceled',
    completed_at = now(),
    lease_expires_at = NULL,
    stage = NULL
WHERE id = $1 AND lease_token = $2 AND status = 'processing'
RETURNING id;

-- name: made
-- Primary key. One job and nobody else's: it is named by a user.
SELECT status, outputs FROM generation_jobs WHERE id = $1 AND user_id IS NOT DISTINCT FROM $2;
