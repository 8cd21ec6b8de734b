-- A mode may change pictures as the prompt says, and take more than one of them.

ALTER TABLE public.generation_jobs
    ADD COLUMN more_references text[],
    -- The number of dimensions is checked first: array_position refuses more than one in words of its own.
    ADD CONSTRAINT generation_jobs_more_references_at_most_2 CHECK (
        CASE
            WHEN coalesce(array_ndims(more_references), 1) <> 1 OR cardinality(more_references) > 2 THEN false
            ELSE array_position(more_references, NULL) IS NULL
                AND octet_length(array_to_string(more_references, '')) <= 16384
        END
    );
COMMENT ON CONSTRAINT generation_jobs_more_references_at_most_2 ON public.generation_jobs IS
    'must be a list of at most 2 references, none of them null, and have at most 16 KB';

COMMENT ON COLUMN public.generation_jobs.reference IS
    'Picture to start from, or to change in a mode for edits: upload:ID, job:ID/INDEX, or an https URL of a host that is '
    'allowed.';
COMMENT ON COLUMN public.generation_jobs.more_references IS
    'Up to 2 further pictures for an edit, in the forms of reference.';
