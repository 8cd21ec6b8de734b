-- The demonstration model is no longer an untrained one.

COMMENT ON COLUMN public.generation_workers.demo IS 'True when the model is there for demonstrations: tiny or blank.';
