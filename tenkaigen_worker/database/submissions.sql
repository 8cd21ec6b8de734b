-- The queries of submissions.py. {columns} stands for what a JobView is made of. Whose job it may be are two parameters,
-- "everybody's" and "this user's": a filter on the one row that the primary key finds.

-- name: users_have_a_role
-- The catalog.
SELECT EXISTS (
    SELECT FROM pg_policies
    WHERE schemaname = 'public' AND tablename = 'generation_jobs' AND 'authenticated' = ANY (roles)
);

-- name: become_user
-- Until the transaction ends.
SELECT set_config('role', 'authenticated', true), set_config('request.jwt.claims', $1, true);

-- name: get
-- Primary key.
SELECT {columns} FROM generation_jobs WHERE id = $1 AND ($2 OR user_id IS NOT DISTINCT FROM $3);

-- name: line
-- Primary key for the job itself; before it, in the order of the claim, at most $2 entries of
-- generation_jobs_queued_idx; and generation_jobs_processing_idx. A higher priority and an earlier place of the same one
-- are two ranges of the index, and must be asked for as two: together they would be a filter over all of it.
--
-- The job is looked up before its status is: with both in one WHERE, a server that believes the queue to be empty reads
-- all of it through the index of queued rows.
WITH asked AS MATERIALIZED (
    SELECT status, run_at, priority, fair_at, seq, mode, count
    FROM generation_jobs
    WHERE id = $1 AND ($3 OR user_id IS NOT DISTINCT FROM $4)
),
own AS MATERIALIZED (
    SELECT priority, fair_at, seq, mode, count FROM asked WHERE status = 'queued' AND run_at <= now()
),
work AS (
    SELECT 'own' AS part, mode, count AS pictures FROM own
    UNION ALL
    SELECT 'queued', ahead.mode, ahead.count
    FROM own AS mine
    CROSS JOIN LATERAL (
        (
            SELECT mode, count
            FROM generation_jobs
            WHERE status = 'queued' AND priority > mine.priority
                AND run_at <= now() AND (expires_at IS NULL OR expires_at > now())
            ORDER BY priority DESC, fair_at, seq
            LIMIT $2
        )
        UNION ALL
        (
            SELECT mode, count
            FROM generation_jobs
            WHERE status = 'queued' AND priority = mine.priority AND (fair_at, seq) < (mine.fair_at, mine.seq)
                AND run_at <= now() AND (expires_at IS NULL OR expires_at > now())
            ORDER BY priority DESC, fair_at, seq
            LIMIT $2
        )
        LIMIT $2
    ) AS ahead
    UNION ALL
    (
        SELECT 'running', mode, count * (1 - progress)
        FROM generation_jobs
        WHERE status = 'processing' AND EXISTS (SELECT FROM own)
        LIMIT $2
    )
)
SELECT part, mode, count(*)::integer AS jobs, sum(pictures)::double precision AS pictures
FROM work
GROUP BY part, mode;

-- name: by_key
-- generation_jobs_idempotency_key.
SELECT {columns}, request_hash
FROM generation_jobs
WHERE coalesce(user_id, '00000000-0000-0000-0000-000000000000')
        = coalesce($1, '00000000-0000-0000-0000-000000000000'::uuid)
    AND idempotency_key = $2;

-- name: cancel
-- Primary key. The trigger generation_jobs_cancel_queued ends a queued job at once.
UPDATE generation_jobs
SET cancel_requested_at = now()
WHERE id = $1 AND ($2 OR user_id IS NOT DISTINCT FROM $3)
    AND status IN ('queued', 'processing') AND cancel_requested_at IS NULL
RETURNING {columns};

-- name: cancel_own
-- The same for a user; the function looks whose job it is.
SELECT {columns} FROM cancel_generation_job($1);

-- name: retry
-- Primary key. A new row with the same request; when it may run, and how often, starts anew.
INSERT INTO generation_jobs (
    retry_of, user_id, prompt, negative_prompt, style, mode, width, height, seed, steps, guidance_scale, count, loras,
    franchise, template, template_variables, reference, more_references, mask, strength, metadata, priority, max_attempts,
    webhook_url
)
SELECT
    id, user_id, prompt, negative_prompt, style, mode, width, height, seed, steps, guidance_scale, count, loras,
    franchise, template, template_variables, reference, more_references, mask, strength, metadata, priority, max_attempts,
    webhook_url
FROM generation_jobs
WHERE id = $1 AND ($2 OR user_id IS NOT DISTINCT FROM $3) AND status IN ('failed', 'canceled')
RETURNING {columns};

-- name: retry_own
-- The same for a user; the function looks whose job it is.
SELECT {columns} FROM retry_generation_job($1);

-- name: rule
-- What a named rule says in words, and the column it is about.
SELECT a.attname AS field, obj_description(c.oid, 'pg_constraint') AS words
FROM pg_constraint c
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
WHERE c.conrelid = 'generation_jobs'::regclass AND c.conname = $1;

-- name: depth
-- generation_jobs_queued_idx and generation_jobs_processing_idx.
SELECT
    (SELECT count(*) FROM generation_jobs WHERE status = 'queued') AS queued,
    (SELECT count(*) FROM generation_jobs WHERE status = 'processing') AS processing,
    coalesce(
        extract(epoch FROM (SELECT now() - min(run_at) FROM generation_jobs WHERE status = 'queued' AND run_at <= now())),
        0
    )::double precision AS oldest_seconds;

-- name: stats
-- generation_jobs_recent_idx.
SELECT status,
    count(*) AS jobs,
    avg(processing_time_ms)::double precision AS average_ms,
    coalesce(sum(processing_time_ms) FILTER (WHERE status = 'completed'), 0)::double precision / 1000 AS busy_seconds,
    coalesce(sum(jsonb_array_length(outputs)), 0)::bigint AS pictures,
    coalesce(
        sum((SELECT sum((picture ->> 'bytes')::bigint) FROM jsonb_array_elements(outputs) AS picture)), 0
    )::bigint AS storage_bytes
FROM generation_jobs
WHERE created_at > now() - make_interval(hours => $1)
GROUP BY status
ORDER BY status;

-- name: table_bytes
-- No index: the server knows the sizes of its files.
SELECT pg_total_relation_size('generation_jobs');
