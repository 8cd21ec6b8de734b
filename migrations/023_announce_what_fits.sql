-- Workers say what fits into their device's memory, so that pictures beyond it are refused before they wait.

ALTER TABLE public.generation_workers ADD COLUMN limits jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN public.generation_workers.limits IS
    'What its engine can draw at most: max_pixels of a picture. What it does not name has no bound of its own.';
