-- The queries of api_keys.py. There are few keys; the digest has an index of its own.

-- name: create
-- generation_api_keys_name_key keeps names apart.
INSERT INTO generation_api_keys (name, sha256, scopes, expires_at)
VALUES ($1, $2, $3, now() + make_interval(days => $4));

-- name: find
-- generation_api_keys_sha256_key. When it was last used is written once an hour: not every request is to be a write.
WITH used AS (
    UPDATE generation_api_keys
    SET last_used_at = now()
    WHERE sha256 = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
        AND (last_used_at IS NULL OR last_used_at < now() - interval '1 hour')
)
SELECT id, name, scopes, created_at, expires_at, revoked_at, last_used_at
FROM generation_api_keys
WHERE sha256 = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: all
-- The whole table.
SELECT id, name, scopes, created_at, expires_at, revoked_at, last_used_at
FROM generation_api_keys
ORDER BY created_at, name;

-- name: revoke
-- generation_api_keys_name_key.
UPDATE generation_api_keys SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL RETURNING id;
