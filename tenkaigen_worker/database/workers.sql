-- The queries of workers.py. The table has a row per worker: small enough to be read as a whole.

-- name: announce
-- Primary key.
INSERT INTO generation_workers (
    id, host, version, backend, model, demo, state, styles, modes, picture_ms, loras, templates,
    limits
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (id) DO UPDATE
SET state = excluded.state,
    styles = excluded.styles,
    modes = excluded.modes,
    picture_ms = excluded.picture_ms,
    loras = excluded.loras,
    templates = excluded.templates,
    limits = excluded.limits,
    seen_at = now();

-- name: leave
-- Primary key.
DELETE FROM generation_workers WHERE id = $1;

-- name: forget
-- No index. Rows of workers that were killed.
DELETE FROM generation_workers WHERE seen_at < now() - interval '1 day';

-- name: live
-- No index. By the database's clock alone, whatever those of the workers say.
SELECT id, host, version, backend, model, demo, state, styles, modes, picture_ms, loras, templates, limits
FROM generation_workers
WHERE seen_at > now() - interval '45 seconds'
ORDER BY started_at, id;
