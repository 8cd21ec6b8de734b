-- Workers say what they are and what they can make, so that requests are checked and waits estimated by what there is.

CREATE TABLE public.generation_workers (
    id text PRIMARY KEY,
    host text NOT NULL,
    version text NOT NULL,
    backend text NOT NULL,
    model text NOT NULL,
    demo boolean NOT NULL,
    state text NOT NULL,
    styles jsonb NOT NULL,
    modes text[] NOT NULL,
    picture_ms jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT generation_workers_state_known CHECK (state IN ('ready', 'unready'))
);

COMMENT ON TABLE public.generation_workers IS
    'What each worker says of itself, at least every 15 seconds. One that was not seen for 45 seconds counts as gone.';
COMMENT ON COLUMN public.generation_workers.id IS 'The worker_id in the rows of its jobs; another one at every start.';
COMMENT ON COLUMN public.generation_workers.host IS 'The machine it runs on.';
COMMENT ON COLUMN public.generation_workers.version IS 'Version of the program.';
COMMENT ON COLUMN public.generation_workers.backend IS 'What makes the pictures: diffusers, tiny or blank.';
COMMENT ON COLUMN public.generation_workers.model IS 'The model that is loaded.';
COMMENT ON COLUMN public.generation_workers.demo IS 'True when the model is an untrained one, for demonstrations.';
COMMENT ON COLUMN public.generation_workers.state IS
    'ready: it takes jobs. unready: not now, because its engine cannot be used, or because it is stopping.';
COMMENT ON COLUMN public.generation_workers.styles IS 'The styles it has: an object of name and description.';
COMMENT ON COLUMN public.generation_workers.modes IS
    'The modes it has. The first one is for jobs that ask for none.';
COMMENT ON COLUMN public.generation_workers.picture_ms IS
    'Milliseconds its engine needs for a picture: an object of mode and moving average. Modes it has not used are not '
    'in it.';
COMMENT ON COLUMN public.generation_workers.started_at IS 'When it first said so.';
COMMENT ON COLUMN public.generation_workers.seen_at IS 'When it last said so, by the clock of the database.';

-- Older Supabase projects grant every new table to everybody who holds the public key.
DO $$
DECLARE
    visitor text;
BEGIN
    FOR visitor IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON public.generation_workers FROM %I', visitor);
    END LOOP;
END
$$;
