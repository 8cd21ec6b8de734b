-- The job table: one row is one request for pictures.
--
-- The same file makes a new table and adopts one of that name that a shop has made before, with its rows: columns are
-- added one by one, types of the shop's own are converted, and what old rows say is mapped to the words used here. It
-- runs on PostgreSQL 15 and later, and on Supabase.

SET LOCAL TimeZone = 'UTC';

-- A constraint that waits for the end of the transaction would forbid to change the table after its rows.
SET CONSTRAINTS ALL IMMEDIATE;

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

-- A table made before.
DO $$
DECLARE
    jobs constant regclass := 'public.generation_jobs';
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
END
$$;

-- The columns --------------------------------------------------------------------------------------------------------

-- What the table shall have. Unset sizes and seeds mean: what the engine's model likes best, and any.
CREATE TEMPORARY TABLE job_template (
    -- who, and how it stands
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id uuid,
    status text NOT NULL DEFAULT 'queued',
    -- what was asked for
    prompt text NOT NULL,
    negative_prompt text,
    style text,
    mode text,
    width integer,
    height integer,
    seed bigint,
    steps integer,
    guidance_scale double precision,
    count integer NOT NULL DEFAULT 1,
    loras jsonb NOT NULL DEFAULT '[]',
    franchise text,
    template text,
    template_variables jsonb NOT NULL DEFAULT '{}',
    reference text,
    mask text,
    strength double precision,
    metadata jsonb NOT NULL DEFAULT '{}',
    -- when it may run
    priority integer NOT NULL DEFAULT 0,
    run_at timestamptz NOT NULL DEFAULT now(),
    fair_at timestamptz NOT NULL DEFAULT now(),
    seq bigint GENERATED ALWAYS AS IDENTITY,
    expires_at timestamptz,
    max_attempts integer NOT NULL DEFAULT 3,
    -- who asked, and whom to tell
    idempotency_key text,
    request_hash text,
    retry_of uuid,
    webhook_url text,
    cancel_requested_at timestamptz,
    -- the lease
    attempt integer NOT NULL DEFAULT 0,
    lease_token bigint NOT NULL DEFAULT 0,
    worker_id text,
    lease_expires_at timestamptz,
    progress real NOT NULL DEFAULT 0,
    stage text,
    -- the outcome
    result_url text,
    outputs jsonb NOT NULL DEFAULT '[]',
    recipe jsonb,
    error_code text,
    error_message text,
    processing_time_ms integer,
    timings_ms jsonb,
    image_data text,
    -- when
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    completed_at timestamptz
) ON COMMIT DROP;

-- What becomes of each column. A shop's own is converted, unless the type it has does as well. One of the queue's in
-- another type means something else there, and nobody can guess what.
CREATE TEMPORARY TABLE job_columns ON COMMIT DROP AS
WITH described AS (
    SELECT a.*,
        format_type(a.atttypid, a.atttypmod) AS type,
        format_type(a.atttypid, a.atttypmod)
            || CASE a.attidentity WHEN '' THEN '' WHEN 'a' THEN ' GENERATED ALWAYS AS IDENTITY' ELSE ' IDENTITY' END
            || CASE a.attgenerated WHEN '' THEN '' ELSE ' GENERATED' END AS shape,
        pg_get_expr(d.adbin, d.adrelid) AS preset
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid IN ('pg_temp.job_template'::regclass, 'public.generation_jobs'::regclass)
        AND a.attnum > 0 AND NOT a.attisdropped
)
SELECT new.attname AS name, new.attnum AS place, new.type, new.shape, new.preset, new.attnotnull AS required,
    old.attnum AS old_place, old.shape AS old_shape, NOT old.attnotnull AS has_gaps,
    CASE
        WHEN old.attnum IS NULL THEN 'add'
        WHEN old.shape = new.shape OR (new.type, old.shape) = ('text', 'character varying') THEN 'keep'
        WHEN new.attname = 'image_data' THEN 'keep'
        WHEN old.shape <> old.type OR new.attname NOT IN (
            'user_id', 'status', 'prompt', 'negative_prompt', 'style', 'width', 'height', 'seed', 'steps',
            'guidance_scale', 'metadata', 'priority', 'result_url', 'error_message', 'processing_time_ms',
            'created_at', 'started_at', 'completed_at'
        ) THEN 'refuse'
        WHEN (new.type, old.type) = ('integer', 'bigint') THEN 'keep'
        ELSE 'convert'
    END AS fate
FROM described AS new
LEFT JOIN described AS old ON old.attname = new.attname AND old.attrelid = 'public.generation_jobs'::regclass
WHERE new.attrelid = 'pg_temp.job_template'::regclass;

DO $$
DECLARE
    jobs constant regclass := 'public.generation_jobs';
    obstacles text;
    actions text;
    item record;
BEGIN
    SELECT string_agg(format('%I is %s and must be %s', name, old_shape, shape), '; ' ORDER BY place) INTO obstacles
    FROM pg_temp.job_columns WHERE fate = 'refuse';
    IF obstacles IS NOT NULL THEN
        RAISE EXCEPTION 'public.generation_jobs has columns of ours in another type: %', obstacles
            USING HINT = 'Rename them (ALTER TABLE public.generation_jobs RENAME COLUMN ...) and migrate again.';
    END IF;

    -- Indexes, constraints and a column's own default follow it to another type; nothing else does.
    SELECT string_agg(
        format('%I must be %s (%s)', c.name, c.type, pg_describe_object(d.classid, d.objid, d.objsubid)), '; '
        ORDER BY c.place, d.objid
    ) INTO obstacles
    FROM pg_temp.job_columns c
    JOIN (SELECT DISTINCT classid, objid, objsubid, refclassid, refobjid, refobjsubid FROM pg_depend) d
        ON d.refclassid = 'pg_class'::regclass AND d.refobjid = jobs AND d.refobjsubid = c.old_place
    WHERE c.fate = 'convert'
        AND d.classid NOT IN ('pg_class'::regclass, 'pg_constraint'::regclass, 'pg_statistic_ext'::regclass)
        AND NOT EXISTS (
            SELECT FROM pg_attrdef own
            WHERE d.classid = 'pg_attrdef'::regclass AND own.oid = d.objid AND own.adnum = c.old_place
        );
    IF obstacles IS NOT NULL THEN
        RAISE EXCEPTION 'columns of public.generation_jobs must change their type, and something depends on it: %',
            obstacles
            USING HINT = 'Drop what depends on them, migrate again, and create it anew.';
    END IF;

    -- The shop's own rules about the status would refuse ours.
    FOR item IN
        SELECT c.conname
        FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = jobs AND c.contype = 'c' AND a.attname = 'status'
    LOOP
        EXECUTE format('ALTER TABLE public.generation_jobs DROP CONSTRAINT %I', item.conname);
    END LOOP;

    -- A partial index that compares the status with a value of another type cannot follow it to text.
    FOR item IN
        SELECT DISTINCT i.indexrelid::regclass AS name
        FROM pg_index i
        JOIN pg_depend d ON d.objid = i.indexrelid AND d.classid = 'pg_class'::regclass
            AND d.refobjid = i.indrelid AND d.refclassid = 'pg_class'::regclass
        JOIN pg_temp.job_columns c ON c.old_place = d.refobjsubid
        WHERE i.indrelid = jobs AND c.name = 'status' AND c.fate = 'convert'
            AND (i.indpred IS NOT NULL OR i.indexprs IS NOT NULL)
    LOOP
        RAISE WARNING 'dropping index %: it compares the status with a type that the table no longer uses', item.name;
        EXECUTE format('DROP INDEX %s', item.name);
    END LOOP;

    -- One statement, so that a big table is rewritten once. Of the shop's defaults none stays: they would say what the
    -- model and the mode say better. A status that is new gets its default too late for old rows: they are not queued.
    SELECT string_agg(
        CASE
            WHEN fate = 'add' THEN format('ADD COLUMN %I %s', name, shape) || CASE name
                WHEN 'retry_of' THEN ' REFERENCES public.generation_jobs (id) ON DELETE SET NULL'
                WHEN 'status' THEN ', ALTER COLUMN status SET DEFAULT ' || preset
                ELSE coalesce(' NOT NULL DEFAULT ' || preset, '')
            END
            ELSE nullif(concat_ws(
                ', ',
                CASE WHEN fate = 'convert' THEN
                    format('ALTER COLUMN %1$I DROP DEFAULT, ALTER COLUMN %1$I TYPE %2$s USING %1$I::%2$s', name, type)
                END,
                CASE WHEN preset IS NOT NULL THEN format('ALTER COLUMN %I SET DEFAULT %s', name, preset)
                    WHEN shape = type THEN format('ALTER COLUMN %I DROP DEFAULT', name)
                END,
                CASE WHEN NOT required THEN format('ALTER COLUMN %I DROP NOT NULL', name) END
            ), '')
        END,
        ', ' ORDER BY place
    ) INTO actions
    FROM pg_temp.job_columns;
    EXECUTE 'ALTER TABLE public.generation_jobs ' || actions;
END
$$;

-- Room on each page, so that heartbeats are HOT updates that touch no index; and vacuum long before a fifth of many
-- finished rows has changed, so that claims do not wade through dead index entries.
ALTER TABLE public.generation_jobs SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

-- The rules ----------------------------------------------------------------------------------------------------------

-- Each has a name that says what is wrong, and words that become its comment, which the API shows.
CREATE TEMPORARY TABLE job_rules (
    place integer GENERATED ALWAYS AS IDENTITY,
    field text,
    name text,
    condition text,
    words text
) ON COMMIT DROP;

INSERT INTO job_rules (field, name, condition, words) VALUES
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
    ('created_at', 'years_1_to_9999',
        $c$created_at >= '0001-01-01 00:00Z' AND created_at < '10000-01-01 00:00Z'$c$,
        'must be between the years 1 and 9999'),
    ('progress', '0_to_1', 'progress BETWEEN 0 AND 1', 'must be between 0 and 1'),
    ('outputs', 'is_list', $c$jsonb_typeof(outputs) = 'array'$c$, 'must be a JSON list');

UPDATE job_rules SET name = format('generation_jobs_%s_%s', field, name);

-- A table made before: what its rows say, in the words used here -----------------------------------------------------

DO $$
DECLARE
    jobs constant regclass := 'public.generation_jobs';
    awake text;
    gaps text;
    fillings text;
    all_kept text;
    causes text;
BEGIN
    -- The shop's own triggers send mails and count credits; nothing happens to these jobs now.
    SELECT string_agg(
        format(
            'ENABLE %s TRIGGER %I', CASE tgenabled WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' END, tgname
        ), ', '
    ) INTO awake
    FROM pg_trigger WHERE tgrelid = jobs AND NOT tgisinternal AND tgenabled <> 'D';
    ALTER TABLE public.generation_jobs DISABLE TRIGGER USER;

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
            ('queued', 'queued'), ('pending', 'queued'), ('waiting', 'queued'), ('new', 'queued'),
            ('created', 'queued'), ('scheduled', 'queued'), ('submitted', 'queued'), ('retry', 'queued'),
            ('retrying', 'queued'),
            ('processing', 'processing'), ('running', 'processing'), ('started', 'processing'),
            ('in_progress', 'processing'), ('in progress', 'processing'), ('generating', 'processing'),
            ('completed', 'completed'), ('complete', 'completed'), ('done', 'completed'), ('finished', 'completed'),
            ('success', 'completed'), ('succeeded', 'completed'), ('ready', 'completed'),
            ('failed', 'failed'), ('failure', 'failed'), ('error', 'failed'), ('errored', 'failed'),
            ('canceled', 'canceled'), ('cancelled', 'canceled'), ('aborted', 'canceled')
        ) AS word (old, status) ON word.old = lower(btrim(old.status))
    ) AS new
    WHERE new.id = job.id;

    SELECT string_agg(format('%I IS NULL', name), ' OR '),
        string_agg(format('%1$I = coalesce(%1$I, %2$s)', name, preset), ', ')
    INTO gaps, fillings
    FROM pg_temp.job_columns WHERE required AND has_gaps AND preset IS NOT NULL;
    IF gaps IS NOT NULL THEN
        EXECUTE format('UPDATE public.generation_jobs SET %s WHERE %s', fillings, gaps);
    END IF;

    -- A waiting row that breaks a rule ends here: a worker could not even claim it.
    SELECT string_agg(format('(%s)', condition), ' AND '),
        string_agg(format('CASE WHEN NOT (%s) THEN %L END', condition, field || ' ' || words), ', ' ORDER BY place)
    INTO all_kept, causes
    FROM pg_temp.job_rules;
    EXECUTE format(
        $u$UPDATE public.generation_jobs
           SET status = 'failed', error_code = 'invalid_request', error_message = concat_ws('; ', %s),
               completed_at = now()
           WHERE status IN ('queued', 'processing') AND NOT (%s)$u$,
        causes, all_kept
    );

    IF awake IS NOT NULL THEN
        EXECUTE 'ALTER TABLE public.generation_jobs ' || awake;
    END IF;
END
$$;

-- What holds from now on ---------------------------------------------------------------------------------------------
--
-- Where a finished row breaks a rule, the rule is for waiting rows only: otherwise it would refuse every later change
-- of that row, even that its user is deleted.

DO $$
DECLARE
    tests text;
    actions text;
    broken text[];
    rule record;
BEGIN
    SELECT string_agg(format('CASE WHEN bool_or(NOT (%s)) THEN %L END', condition, name), ', ') INTO tests
    FROM pg_temp.job_rules;
    EXECUTE format('SELECT array_remove(ARRAY[%s], NULL) FROM public.generation_jobs', tests) INTO broken;

    -- One statement, so that a big table is read once. The first column of a rule is the field that it is about.
    SELECT string_agg(action, ', ') INTO actions
    FROM (
        SELECT format('ALTER COLUMN %I SET NOT NULL', name) AS action
        FROM pg_temp.job_columns WHERE required
        UNION ALL
        SELECT format(
            'ADD CONSTRAINT %I CHECK ((%s)%s)', name, condition,
            CASE WHEN name = ANY (broken) THEN $c$ OR status NOT IN ('queued', 'processing')$c$ END
        )
        FROM pg_temp.job_rules
    ) AS all_actions;
    EXECUTE 'ALTER TABLE public.generation_jobs ' || actions;

    FOR rule IN SELECT name, words FROM pg_temp.job_rules ORDER BY place LOOP
        IF rule.name = ANY (broken) THEN
            RAISE WARNING 'some old rows break the rule %: they stay as they are, new rows must keep it', rule.name;
        END IF;
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
