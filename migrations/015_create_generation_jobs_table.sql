-- The job table: one row is one request for pictures.
--
-- The same file makes a new table and adopts one of that name that a shop has made before, with its rows: columns are
-- added one by one, narrower types are widened, and what old rows say is mapped to the words used here. It runs on
-- PostgreSQL 15 and later, and on Supabase.

SET LOCAL TimeZone = 'UTC';

-- The table itself ---------------------------------------------------------------------------------------------------

DO $$
DECLARE
    visitor text;
BEGIN
    IF to_regclass('public.generation_jobs') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE public.generation_jobs (id uuid PRIMARY KEY);

    -- Older Supabase projects grant every new table to everybody who holds the public key.
    FOR visitor IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON public.generation_jobs FROM %I', visitor);
    END LOOP;
END
$$;

-- A table made before: make room for wider values --------------------------------------------------------------------

DO $$
DECLARE
    jobs constant regclass := 'public.generation_jobs';
    status_is_text boolean;
    item record;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = jobs AND attname = 'id' AND atttypid = 'uuid'::regtype
    ) THEN
        RAISE EXCEPTION 'public.generation_jobs has no column "id" of type uuid, so it cannot be adopted'
            USING HINT = 'Rename that table (ALTER TABLE public.generation_jobs RENAME TO old_jobs) and migrate again.';
    END IF;

    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = jobs AND contype = 'p') THEN
        ALTER TABLE public.generation_jobs ADD PRIMARY KEY (id);
    END IF;

    -- Its own rules about the status would refuse ours.
    FOR item IN
        SELECT c.conname
        FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = jobs AND c.contype = 'c' AND a.attname = 'status'
            AND c.conname NOT LIKE 'generation\_jobs\_status\_known'
    LOOP
        EXECUTE format('ALTER TABLE public.generation_jobs DROP CONSTRAINT %I', item.conname);
    END LOOP;

    SELECT atttypid = 'text'::regtype INTO status_is_text
    FROM pg_attribute WHERE attrelid = jobs AND attname = 'status' AND NOT attisdropped;

    -- A partial index that compares the status with a value of another type cannot follow it to text.
    FOR item IN
        SELECT DISTINCT i.indexrelid::regclass AS name
        FROM pg_index i
        JOIN pg_depend d ON d.objid = i.indexrelid AND d.classid = 'pg_class'::regclass
            AND d.refobjid = i.indrelid AND d.refclassid = 'pg_class'::regclass
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = d.refobjsubid
        WHERE i.indrelid = jobs AND a.attname = 'status' AND NOT status_is_text
            AND (i.indpred IS NOT NULL OR i.indexprs IS NOT NULL)
    LOOP
        RAISE WARNING 'dropping index %: it compares the status with a type that the table no longer uses', item.name;
        EXECUTE format('DROP INDEX %s', item.name);
    END LOOP;

    FOR item IN
        SELECT wanted.name, wanted.type
        FROM (VALUES
            ('user_id', 'uuid'),
            ('status', 'text'),
            ('prompt', 'text'),
            ('style', 'text'),
            ('width', 'integer'),
            ('height', 'integer'),
            ('seed', 'bigint'),
            ('result_url', 'text'),
            ('error_message', 'text'),
            ('processing_time_ms', 'integer'),
            ('created_at', 'timestamp with time zone'),
            -- not in every shop's table
            ('negative_prompt', 'text'),
            ('steps', 'integer'),
            ('guidance_scale', 'double precision'),
            ('metadata', 'jsonb'),
            ('priority', 'integer'),
            ('started_at', 'timestamp with time zone'),
            ('completed_at', 'timestamp with time zone')
        ) AS wanted (name, type)
        JOIN pg_attribute a ON a.attrelid = jobs AND a.attname = wanted.name AND NOT a.attisdropped
        WHERE format_type(a.atttypid, a.atttypmod) <> wanted.type
    LOOP
        EXECUTE format(
            'ALTER TABLE public.generation_jobs '
            'ALTER COLUMN %1$I DROP DEFAULT, ALTER COLUMN %1$I TYPE %2$s USING %1$I::%2$s',
            item.name, item.type
        );
    END LOOP;
END
$$;

-- The columns --------------------------------------------------------------------------------------------------------

ALTER TABLE public.generation_jobs
    -- who, and how it stands
    ADD COLUMN IF NOT EXISTS user_id uuid,
    ADD COLUMN IF NOT EXISTS status text,
    -- what was asked for
    ADD COLUMN IF NOT EXISTS prompt text,
    ADD COLUMN IF NOT EXISTS negative_prompt text,
    ADD COLUMN IF NOT EXISTS style text,
    ADD COLUMN IF NOT EXISTS mode text,
    ADD COLUMN IF NOT EXISTS width integer,
    ADD COLUMN IF NOT EXISTS height integer,
    ADD COLUMN IF NOT EXISTS seed bigint,
    ADD COLUMN IF NOT EXISTS steps integer,
    ADD COLUMN IF NOT EXISTS guidance_scale double precision,
    ADD COLUMN IF NOT EXISTS count integer NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS loras jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS franchise text,
    ADD COLUMN IF NOT EXISTS template text,
    ADD COLUMN IF NOT EXISTS template_variables jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS reference text,
    ADD COLUMN IF NOT EXISTS mask text,
    ADD COLUMN IF NOT EXISTS strength double precision,
    ADD COLUMN IF NOT EXISTS metadata jsonb NOT NULL DEFAULT '{}',
    -- when it may run
    ADD COLUMN IF NOT EXISTS priority integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS run_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS fair_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS seq bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN IF NOT EXISTS expires_at timestamptz,
    ADD COLUMN IF NOT EXISTS max_attempts integer NOT NULL DEFAULT 3,
    -- who asked, and whom to tell
    ADD COLUMN IF NOT EXISTS idempotency_key text,
    ADD COLUMN IF NOT EXISTS request_hash text,
    ADD COLUMN IF NOT EXISTS retry_of uuid REFERENCES public.generation_jobs (id) ON DELETE SET NULL,
    ADD COLUMN IF NOT EXISTS webhook_url text,
    ADD COLUMN IF NOT EXISTS cancel_requested_at timestamptz,
    -- the lease
    ADD COLUMN IF NOT EXISTS attempt integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS lease_token bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS worker_id text,
    ADD COLUMN IF NOT EXISTS lease_expires_at timestamptz,
    ADD COLUMN IF NOT EXISTS progress real NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS stage text,
    -- the outcome
    ADD COLUMN IF NOT EXISTS result_url text,
    ADD COLUMN IF NOT EXISTS outputs jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN IF NOT EXISTS recipe jsonb,
    ADD COLUMN IF NOT EXISTS error_code text,
    ADD COLUMN IF NOT EXISTS error_message text,
    ADD COLUMN IF NOT EXISTS processing_time_ms integer,
    ADD COLUMN IF NOT EXISTS timings_ms jsonb,
    ADD COLUMN IF NOT EXISTS image_data text,
    -- when
    ADD COLUMN IF NOT EXISTS created_at timestamptz,
    ADD COLUMN IF NOT EXISTS started_at timestamptz,
    ADD COLUMN IF NOT EXISTS completed_at timestamptz;

-- Unset sizes and seeds mean: what the engine's model likes best, and any. The old defaults would forbid that.
ALTER TABLE public.generation_jobs
    ALTER COLUMN id SET DEFAULT gen_random_uuid(),
    ALTER COLUMN user_id DROP NOT NULL,
    ALTER COLUMN status SET DEFAULT 'queued',
    ALTER COLUMN prompt DROP DEFAULT,
    ALTER COLUMN style DROP NOT NULL,
    ALTER COLUMN style DROP DEFAULT,
    ALTER COLUMN width DROP NOT NULL,
    ALTER COLUMN width DROP DEFAULT,
    ALTER COLUMN height DROP NOT NULL,
    ALTER COLUMN height DROP DEFAULT,
    ALTER COLUMN seed DROP NOT NULL,
    ALTER COLUMN seed DROP DEFAULT,
    ALTER COLUMN result_url DROP NOT NULL,
    ALTER COLUMN result_url DROP DEFAULT,
    ALTER COLUMN error_message DROP NOT NULL,
    ALTER COLUMN error_message DROP DEFAULT,
    ALTER COLUMN processing_time_ms DROP NOT NULL,
    ALTER COLUMN processing_time_ms DROP DEFAULT,
    ALTER COLUMN image_data DROP NOT NULL,
    ALTER COLUMN image_data DROP DEFAULT,
    ALTER COLUMN created_at SET DEFAULT now();

-- Room on each page, so that heartbeats are HOT updates that touch no index; and vacuum long before a fifth of many
-- finished rows has changed, so that claims do not wade through dead index entries.
ALTER TABLE public.generation_jobs SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

-- A table made before: what its rows say, in the words used here -----------------------------------------------------

UPDATE public.generation_jobs AS job
SET status = new.status,
    prompt = coalesce(job.prompt, ''),
    error_message = CASE
        WHEN new.known THEN job.error_message
        ELSE coalesce(
            job.error_message, format('The status was %s when this table was adopted.', quote_nullable(job.status))
        )
    END,
    created_at = new.created_at,
    run_at = new.created_at,
    fair_at = new.created_at,
    progress = CASE new.status WHEN 'completed' THEN 1 ELSE 0 END,
    completed_at = CASE
        WHEN new.status IN ('completed', 'failed', 'canceled')
        THEN coalesce(
            job.completed_at, new.created_at + coalesce(job.processing_time_ms, 0) * interval '1 millisecond'
        )
    END
FROM (
    SELECT old.id,
        coalesce(old.created_at, now()) AS created_at,
        coalesce(word.status, CASE WHEN old.result_url IS NULL THEN 'failed' ELSE 'completed' END) AS status,
        word.status IS NOT NULL OR old.result_url IS NOT NULL AS known
    FROM public.generation_jobs AS old
    LEFT JOIN (VALUES
        ('queued', 'queued'), ('pending', 'queued'), ('waiting', 'queued'), ('new', 'queued'), ('created', 'queued'),
        ('scheduled', 'queued'), ('submitted', 'queued'), ('retry', 'queued'), ('retrying', 'queued'),
        ('processing', 'processing'), ('running', 'processing'), ('started', 'processing'),
        ('in_progress', 'processing'), ('in progress', 'processing'), ('generating', 'processing'),
        ('completed', 'completed'), ('complete', 'completed'), ('done', 'completed'), ('finished', 'completed'),
        ('success', 'completed'), ('succeeded', 'completed'), ('ready', 'completed'),
        ('failed', 'failed'), ('failure', 'failed'), ('error', 'failed'), ('errored', 'failed'),
        ('canceled', 'canceled'), ('cancelled', 'canceled'), ('aborted', 'canceled')
    ) AS word (old, status) ON word.old = lower(btrim(old.status))
) AS new
WHERE new.id = job.id;

ALTER TABLE public.generation_jobs
    ALTER COLUMN status SET NOT NULL,
    ALTER COLUMN prompt SET NOT NULL,
    ALTER COLUMN created_at SET NOT NULL;

-- The rules ----------------------------------------------------------------------------------------------------------
--
-- Each has a name that says what is wrong, and a comment in words that the API shows. An old row that breaks a rule
-- stays as it is; if it was still to run it ends as failed first, because a worker could not even claim it.

DO $$
DECLARE
    rule record;
BEGIN
    FOR rule IN
        SELECT format('generation_jobs_%s_%s', r.field, r.name) AS name, r.field, r.condition, r.words
        FROM (VALUES
            ('status', 'known', $c$status IN ('queued', 'processing', 'completed', 'failed', 'canceled')$c$,
                'must be queued, processing, completed, failed or canceled'),
            ('prompt', 'not_blank', $c$prompt ~ '[^[:space:]]'$c$, 'must not be blank'),
            ('prompt', 'at_most_4000_characters', 'char_length(prompt) <= 4000', 'must have at most 4000 characters'),
            ('negative_prompt', 'at_most_4000_characters', 'char_length(negative_prompt) <= 4000',
                'must have at most 4000 characters'),
            ('style', 'at_most_100_characters', 'char_length(style) <= 100', 'must have at most 100 characters'),
            ('mode', 'at_most_100_characters', 'char_length(mode) <= 100', 'must have at most 100 characters'),
            ('width', '64_to_4096', 'width BETWEEN 64 AND 4096', 'must be between 64 and 4096 pixels'),
            ('width', 'multiple_of_16', 'width % 16 = 0', 'must be a multiple of 16'),
            ('height', '64_to_4096', 'height BETWEEN 64 AND 4096', 'must be between 64 and 4096 pixels'),
            ('height', 'multiple_of_16', 'height % 16 = 0', 'must be a multiple of 16'),
            ('seed', '0_to_4294967295', 'seed BETWEEN 0 AND 4294967295', 'must be between 0 and 4294967295'),
            ('steps', '1_to_100', 'steps BETWEEN 1 AND 100', 'must be between 1 and 100'),
            ('guidance_scale', '1_to_20', 'guidance_scale BETWEEN 1 AND 20', 'must be between 1 and 20'),
            ('count', '1_to_8', 'count BETWEEN 1 AND 8', 'must be between 1 and 8'),
            ('loras', 'is_list', $c$jsonb_typeof(loras) = 'array'$c$, 'must be a JSON list'),
            ('loras', 'at_most_16_kb', 'octet_length(loras::text) <= 16384', 'must have at most 16 KB as JSON'),
            ('franchise', 'at_most_100_characters', 'char_length(franchise) <= 100',
                'must have at most 100 characters'),
            ('template', 'at_most_4000_characters', 'char_length(template) <= 4000',
                'must have at most 4000 characters'),
            ('template_variables', 'is_object', $c$jsonb_typeof(template_variables) = 'object'$c$,
                'must be a JSON object'),
            ('template_variables', 'at_most_16_kb', 'octet_length(template_variables::text) <= 16384',
                'must have at most 16 KB as JSON'),
            ('reference', 'at_most_2000_characters', 'char_length(reference) <= 2000',
                'must have at most 2000 characters'),
            ('mask', 'at_most_2000_characters', 'char_length(mask) <= 2000', 'must have at most 2000 characters'),
            ('strength', '0_to_1', 'strength BETWEEN 0 AND 1', 'must be between 0 and 1'),
            ('metadata', 'is_object', $c$jsonb_typeof(metadata) = 'object'$c$, 'must be a JSON object'),
            ('metadata', 'at_most_16_kb', 'octet_length(metadata::text) <= 16384', 'must have at most 16 KB as JSON'),
            ('priority', 'minus_100_to_100', 'priority BETWEEN -100 AND 100', 'must be between -100 and 100'),
            ('max_attempts', '1_to_20', 'max_attempts BETWEEN 1 AND 20', 'must be between 1 and 20'),
            ('idempotency_key', '1_to_200_characters', 'char_length(idempotency_key) BETWEEN 1 AND 200',
                'must have 1 to 200 characters'),
            ('request_hash', 'at_most_200_characters', 'char_length(request_hash) <= 200',
                'must have at most 200 characters'),
            ('webhook_url', 'is_https', $c$webhook_url ~ '^https://[^[:space:]/]+[^[:space:]]*$'$c$,
                'must start with https:// and contain no spaces'),
            ('webhook_url', 'at_most_2000_characters', 'char_length(webhook_url) <= 2000',
                'must have at most 2000 characters'),
            ('attempt', 'not_negative', 'attempt >= 0', 'must not be negative'),
            ('progress', '0_to_1', 'progress BETWEEN 0 AND 1', 'must be between 0 and 1'),
            ('outputs', 'is_list', $c$jsonb_typeof(outputs) = 'array'$c$, 'must be a JSON list')
        ) AS r (field, name, condition, words)
    LOOP
        EXECUTE format(
            $u$UPDATE public.generation_jobs
               SET status = 'failed', error_code = 'invalid_request', error_message = %L, completed_at = now()
               WHERE status IN ('queued', 'processing') AND NOT (%s)$u$,
            rule.field || ' ' || rule.words, rule.condition
        );
        BEGIN
            EXECUTE format(
                'ALTER TABLE public.generation_jobs ADD CONSTRAINT %I CHECK (%s)', rule.name, rule.condition
            );
        EXCEPTION WHEN check_violation THEN
            RAISE WARNING 'some old rows break the rule %: they stay as they are, new rows must keep it', rule.name;
            EXECUTE format(
                'ALTER TABLE public.generation_jobs ADD CONSTRAINT %I CHECK (%s) NOT VALID', rule.name, rule.condition
            );
        END;
        EXECUTE format('COMMENT ON CONSTRAINT %I ON public.generation_jobs IS %L', rule.name, rule.words);
    END LOOP;
END
$$;

-- What everything means ----------------------------------------------------------------------------------------------

COMMENT ON TABLE public.generation_jobs IS
    'One row is one request for pictures. INSERT INTO generation_jobs (prompt, style) VALUES (''A phoenix rising'', '
    '''Anime'') queues one; a worker claims it, makes the pictures, and writes result_url and outputs.';

COMMENT ON COLUMN public.generation_jobs.id IS 'The job.';
COMMENT ON COLUMN public.generation_jobs.user_id IS 'Who asked; null for nobody in particular.';
COMMENT ON COLUMN public.generation_jobs.status IS
    'queued -> processing -> completed, failed or canceled; back to queued when an attempt is repeated.';
COMMENT ON COLUMN public.generation_jobs.prompt IS 'What to show, in words.';
COMMENT ON COLUMN public.generation_jobs.negative_prompt IS 'What not to show; joined to the style''s own.';
COMMENT ON COLUMN public.generation_jobs.style IS 'Name of a style plugin; null is Standard.';
COMMENT ON COLUMN public.generation_jobs.mode IS 'Named way to run the model; null is the configured one.';
COMMENT ON COLUMN public.generation_jobs.width IS
    'Pixels, a multiple of 16; null is what the model likes best, and filled in once completed.';
COMMENT ON COLUMN public.generation_jobs.height IS
    'Pixels, a multiple of 16; null is what the model likes best, and filled in once completed.';
COMMENT ON COLUMN public.generation_jobs.seed IS
    'Seed of the first picture; null is any, and filled in once completed.';
COMMENT ON COLUMN public.generation_jobs.steps IS 'Denoising steps; null is what the mode says.';
COMMENT ON COLUMN public.generation_jobs.guidance_scale IS 'Guidance (CFG) scale; null is what the mode says.';
COMMENT ON COLUMN public.generation_jobs.count IS 'How many pictures, each with its own seed.';
COMMENT ON COLUMN public.generation_jobs.loras IS 'List of LoRAs to apply.';
COMMENT ON COLUMN public.generation_jobs.franchise IS 'Name of a franchise whose look is asked for.';
COMMENT ON COLUMN public.generation_jobs.template IS 'Prompt template to fill in.';
COMMENT ON COLUMN public.generation_jobs.template_variables IS 'What to fill into the template, by name.';
COMMENT ON COLUMN public.generation_jobs.reference IS 'Picture to start from.';
COMMENT ON COLUMN public.generation_jobs.mask IS 'Which part of the reference may change.';
COMMENT ON COLUMN public.generation_jobs.strength IS 'How far to go from the reference: 0 keeps it, 1 ignores it.';
COMMENT ON COLUMN public.generation_jobs.metadata IS 'The asker''s own notes; never read here.';
COMMENT ON COLUMN public.generation_jobs.priority IS 'Higher runs first.';
COMMENT ON COLUMN public.generation_jobs.run_at IS 'Not before; later than created_at for scheduled or repeated jobs.';
COMMENT ON COLUMN public.generation_jobs.fair_at IS
    'Place in the queue among jobs of the same priority; set by a trigger.';
COMMENT ON COLUMN public.generation_jobs.seq IS 'Order of insertion; decides between equal places.';
COMMENT ON COLUMN public.generation_jobs.expires_at IS 'If it has not started by then it fails with code expired.';
COMMENT ON COLUMN public.generation_jobs.max_attempts IS 'How often it may be tried.';
COMMENT ON COLUMN public.generation_jobs.idempotency_key IS 'The same key of the same user names the same job.';
COMMENT ON COLUMN public.generation_jobs.request_hash IS 'Hash of the request that came with the idempotency key.';
COMMENT ON COLUMN public.generation_jobs.retry_of IS 'The failed or canceled job that this one repeats.';
COMMENT ON COLUMN public.generation_jobs.webhook_url IS 'Whom to tell when it is final.';
COMMENT ON COLUMN public.generation_jobs.cancel_requested_at IS
    'Set this to ask for cancelling: a queued job ends at once, a running one soon, unless it completes first.';
COMMENT ON COLUMN public.generation_jobs.attempt IS
    'How often it was tried; a worker that gives it back does not count.';
COMMENT ON COLUMN public.generation_jobs.lease_token IS
    'Fencing token: grows by one at every claim, and every later write of a worker carries it.';
COMMENT ON COLUMN public.generation_jobs.worker_id IS 'The worker that has it, or had it last.';
COMMENT ON COLUMN public.generation_jobs.lease_expires_at IS
    'When the job is taken from its worker unless that renews. In no index, so renewing stays a HOT update.';
COMMENT ON COLUMN public.generation_jobs.progress IS 'From 0 to 1. In no index, so writing it stays a HOT update.';
COMMENT ON COLUMN public.generation_jobs.stage IS 'What is being done now, in a word.';
COMMENT ON COLUMN public.generation_jobs.result_url IS 'Where the first picture is.';
COMMENT ON COLUMN public.generation_jobs.outputs IS
    'All pictures: index, key, url, width, height, bytes, sha256 and seed of each.';
COMMENT ON COLUMN public.generation_jobs.recipe IS 'The request fully resolved, nothing left to choose.';
COMMENT ON COLUMN public.generation_jobs.error_code IS 'Why the last attempt ended, for programs.';
COMMENT ON COLUMN public.generation_jobs.error_message IS 'Why the last attempt ended, for people.';
COMMENT ON COLUMN public.generation_jobs.processing_time_ms IS 'Milliseconds from claim to outcome.';
COMMENT ON COLUMN public.generation_jobs.timings_ms IS 'Milliseconds by stage.';
COMMENT ON COLUMN public.generation_jobs.image_data IS 'Pictures of old rows; workers neither read nor write it.';
COMMENT ON COLUMN public.generation_jobs.created_at IS 'When it was inserted.';
COMMENT ON COLUMN public.generation_jobs.started_at IS 'When the last attempt started.';
COMMENT ON COLUMN public.generation_jobs.completed_at IS 'When it became completed, failed or canceled.';
