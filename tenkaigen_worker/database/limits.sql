-- The queries of limits.py. They count as the trigger generation_jobs_limit does.

-- name: everybody
-- One row.
SELECT fair_spacing, max_queued_per_user AS queued, max_per_minute_per_user AS per_minute,
    max_pictures_per_day_per_user AS pictures_per_day
FROM generation_settings;

-- name: users
-- All of a small table, by its primary key.
SELECT user_id, max_queued AS queued, max_per_minute AS per_minute, max_pictures_per_day AS pictures_per_day
FROM generation_user_limits
ORDER BY user_id;

-- name: remove
-- Primary key.
DELETE FROM generation_user_limits WHERE user_id = $1 RETURNING user_id;

-- name: usage
-- generation_jobs_place_idx for what is queued; generation_jobs_by_user_idx for the last day.
SELECT
    (
        SELECT count(*) FROM generation_jobs
        WHERE status = 'queued' AND coalesce(user_id, '00000000-0000-0000-0000-000000000000') = $1
    ) AS queued,
    count(*) FILTER (WHERE created_at > now() - interval '1 minute') AS per_minute,
    coalesce(sum(count) FILTER (WHERE status NOT IN ('failed', 'canceled')), 0)::bigint AS pictures_per_day
FROM generation_jobs
WHERE user_id = $1 AND created_at > now() - interval '1 day';
