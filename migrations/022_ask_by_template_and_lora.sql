-- A template may say everything: a job that names one needs no prompt. And workers say which LoRAs and templates they
-- have, as they say their styles.

DO $$
DECLARE
    jobs constant regclass := 'public.generation_jobs';
    waiting_only boolean;
BEGIN
    -- Where old rows of an adopted table broke this rule, it was made for waiting rows alone.
    SELECT pg_get_constraintdef(oid) LIKE '%status%' INTO waiting_only
    FROM pg_constraint WHERE conrelid = jobs AND conname = 'generation_jobs_prompt_not_blank';

    ALTER TABLE public.generation_jobs
        ALTER COLUMN prompt SET DEFAULT '',
        DROP CONSTRAINT generation_jobs_prompt_not_blank;

    -- The prompt stands first: the rule is about that.
    EXECUTE format(
        'ALTER TABLE public.generation_jobs ADD CONSTRAINT generation_jobs_prompt_not_blank CHECK (%s%s)',
        $c$(prompt ~ '[^[:space:]]' OR coalesce(template, '') ~ '[^[:space:]]')$c$,
        CASE WHEN waiting_only THEN $c$ OR status NOT IN ('queued', 'processing')$c$ END
    );
    COMMENT ON CONSTRAINT generation_jobs_prompt_not_blank ON public.generation_jobs IS
        'must not be blank, unless a template is named';
END
$$;

COMMENT ON COLUMN public.generation_jobs.prompt IS
    'What to show, in words; with a template, what stands for {prompt} in it.';
COMMENT ON COLUMN public.generation_jobs.style IS
    'Name of a style; null is Standard, auto the one that the prompt names.';
COMMENT ON COLUMN public.generation_jobs.loras IS
    'LoRAs to apply: a list of names, or of objects such as {"name": "Ink", "weight": 0.8}.';
COMMENT ON COLUMN public.generation_jobs.franchise IS 'Name or alias of the LoRA of a franchise.';
COMMENT ON COLUMN public.generation_jobs.template IS 'Name of a prompt template.';
COMMENT ON COLUMN public.generation_jobs.template_variables IS 'What to fill into the template: an object of texts.';
COMMENT ON COLUMN public.generation_jobs.reference IS
    'Picture to start from: upload:ID, job:ID/INDEX, or an https URL of a host that is allowed.';
COMMENT ON COLUMN public.generation_jobs.mask IS
    'Picture in the forms of reference: what is white in it is drawn anew, the rest is kept.';
COMMENT ON COLUMN public.generation_jobs.strength IS
    'How far to go from the reference: near 0 keeps it, 1 ignores it.';

ALTER TABLE public.generation_workers
    ADD COLUMN loras jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN templates jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN public.generation_workers.loras IS
    'The LoRAs that its jobs may use: an object of name and list of aliases.';
COMMENT ON COLUMN public.generation_workers.templates IS
    'The prompt templates it has: an object of name and description.';
