CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.api_tokens (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    name character varying(64) NOT NULL,
    token_hash character varying(64) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    last_used_at timestamp with time zone,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone
);
CREATE SEQUENCE public.api_tokens_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.api_tokens_id_seq OWNED BY public.api_tokens.id;
CREATE TABLE public.changes (
    id bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    kind character varying(32) NOT NULL,
    workspace_id bigint,
    session_id bigint,
    user_id bigint
);
CREATE SEQUENCE public.changes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.changes_id_seq OWNED BY public.changes.id;
CREATE TABLE public.events (
    id bigint NOT NULL,
    gateway character varying(64) NOT NULL,
    subject_id character varying(32) NOT NULL,
    phase character varying(8) NOT NULL,
    kind character varying(16) NOT NULL,
    at timestamp with time zone NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    connection_id character varying(32),
    workspace_id bigint,
    session_id bigint,
    user_id bigint,
    detail json NOT NULL
);
CREATE SEQUENCE public.events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.events_id_seq OWNED BY public.events.id;
CREATE TABLE public.sessions (
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    workspace_id bigint NOT NULL,
    token_id bigint NOT NULL,
    fingerprint character varying(64) NOT NULL,
    public_key text NOT NULL,
    client character varying(64) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    revoked_at timestamp with time zone,
    released_at timestamp with time zone
);
CREATE SEQUENCE public.sessions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.sessions_id_seq OWNED BY public.sessions.id;
CREATE TABLE public.shares (
    workspace_id bigint NOT NULL,
    user_id bigint NOT NULL,
    role character varying(16) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    CONSTRAINT ck_shares_role CHECK (((role)::text = ANY ((ARRAY['use'::character varying, 'manage'::character varying])::text[])))
);
CREATE TABLE public.users (
    id bigint NOT NULL,
    email character varying(254) NOT NULL,
    password_hash text,
    is_admin boolean NOT NULL,
    created_at timestamp with time zone NOT NULL,
    disabled_at timestamp with time zone
);
CREATE SEQUENCE public.users_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.users_id_seq OWNED BY public.users.id;
CREATE TABLE public.workspace_host_keys (
    workspace_id bigint NOT NULL,
    private_key text NOT NULL
);
CREATE TABLE public.workspaces (
    id bigint NOT NULL,
    title character varying(64) NOT NULL,
    custom_title character varying(120) NOT NULL,
    owner_id bigint NOT NULL,
    runtime character varying(40) NOT NULL,
    host_public_key text NOT NULL,
    desired_state character varying(16) NOT NULL,
    observed_state character varying(16) NOT NULL,
    observed_at timestamp with time zone NOT NULL,
    activity character varying(16),
    reason text,
    endpoint_socket_path text,
    endpoint_host character varying(253),
    endpoint_port integer,
    failures integer NOT NULL,
    retry_at timestamp with time zone,
    lease_owner character varying(80),
    lease_expires_at timestamp with time zone,
    checkpoints json NOT NULL,
    created_at timestamp with time zone NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT ck_workspaces_activity CHECK (((activity IS NULL) OR ((activity)::text = ANY ((ARRAY['starting'::character varying, 'stopping'::character varying, 'deleting'::character varying])::text[])))),
    CONSTRAINT ck_workspaces_desired_state CHECK (((desired_state)::text = ANY ((ARRAY['running'::character varying, 'stopped'::character varying, 'deleted'::character varying])::text[]))),
    CONSTRAINT ck_workspaces_observed_state CHECK (((observed_state)::text = ANY ((ARRAY['running'::character varying, 'stopped'::character varying, 'unknown'::character varying])::text[])))
);
CREATE SEQUENCE public.workspaces_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.workspaces_id_seq OWNED BY public.workspaces.id;
ALTER TABLE ONLY public.api_tokens ALTER COLUMN id SET DEFAULT nextval('public.api_tokens_id_seq'::regclass);
ALTER TABLE ONLY public.changes ALTER COLUMN id SET DEFAULT nextval('public.changes_id_seq'::regclass);
ALTER TABLE ONLY public.events ALTER COLUMN id SET DEFAULT nextval('public.events_id_seq'::regclass);
ALTER TABLE ONLY public.sessions ALTER COLUMN id SET DEFAULT nextval('public.sessions_id_seq'::regclass);
ALTER TABLE ONLY public.users ALTER COLUMN id SET DEFAULT nextval('public.users_id_seq'::regclass);
ALTER TABLE ONLY public.workspaces ALTER COLUMN id SET DEFAULT nextval('public.workspaces_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0002');
INSERT INTO public.api_tokens VALUES (3, 1, 'laptop', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '2026-11-23 22:00:00+00', NULL, NULL, NULL);
INSERT INTO public.api_tokens VALUES (4, 7, 'ünï ''''quoted''''', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', '2026-11-23 22:00:00+00', NULL, NULL, '2026-11-23 22:00:00+00');
INSERT INTO public.changes VALUES (40, '2026-11-23 22:00:00+00', 'created', 9, NULL, NULL);
INSERT INTO public.events VALUES (60, 'embedded', '00000000000000000000000000000000', 'start', 'command', '2026-11-23 22:00:00+00', '2026-11-23 22:00:00+00', NULL, NULL, 9, NULL, NULL, '{"text": "echo \u00fc"}');
INSERT INTO public.sessions VALUES (20, 1, 9, 3, 'SHA256:x', 'ssh-ed25519 AAAA', 'cli', '2026-11-23 22:00:00+00', '2026-11-23 22:00:00+00', NULL, '2026-11-23 22:00:00+00');
INSERT INTO public.sessions VALUES (21, 1, 9, 3, 'SHA256:x', 'ssh-ed25519 AAAA', 'cli', '2026-11-23 22:00:00+00', '2026-11-23 22:00:00+00', NULL, NULL);
INSERT INTO public.shares VALUES (9, 7, 'manage', '2026-11-23 22:00:00+00');
INSERT INTO public.users VALUES (1, 'ann@example.org', '$argon2id$x', true, '2026-11-23 22:00:00+00', NULL);
INSERT INTO public.users VALUES (7, 'bob@example.org', NULL, false, '2026-11-23 22:00:00+00', '2026-11-23 22:00:00+00');
INSERT INTO public.workspace_host_keys VALUES (9, '-----BEGIN
KEY-----
');
INSERT INTO public.workspaces VALUES (5, 'same-title', '', 1, 'local', 'ssh-ed25519 AAAA', 'deleted', 'stopped', '2026-11-23 22:00:00+00', NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, '[]', '2026-11-23 22:00:00+00', '2026-11-23 22:00:00+00');
INSERT INTO public.workspaces VALUES (9, 'same-title', '', 1, 'local', 'ssh-ed25519 AAAA', 'running', 'running', '2026-11-23 22:00:00+00', NULL, NULL, '/run/x.sock', NULL, NULL, 0, NULL, NULL, NULL, '[{"step": "keeper", "record": {"pid": 4711}}]', '2026-11-23 22:00:00+00', NULL);
SELECT pg_catalog.setval('public.api_tokens_id_seq', 4, true);
SELECT pg_catalog.setval('public.changes_id_seq', 40, true);
SELECT pg_catalog.setval('public.events_id_seq', 1, false);
SELECT pg_catalog.setval('public.sessions_id_seq', 21, true);
SELECT pg_catalog.setval('public.users_id_seq', 7, true);
SELECT pg_catalog.setval('public.workspaces_id_seq', 9, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.api_tokens
    ADD CONSTRAINT pk_api_tokens PRIMARY KEY (id);
ALTER TABLE ONLY public.changes
    ADD CONSTRAINT pk_changes PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT pk_events PRIMARY KEY (id);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT pk_sessions PRIMARY KEY (id);
ALTER TABLE ONLY public.shares
    ADD CONSTRAINT pk_shares PRIMARY KEY (workspace_id, user_id);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT pk_users PRIMARY KEY (id);
ALTER TABLE ONLY public.workspace_host_keys
    ADD CONSTRAINT pk_workspace_host_keys PRIMARY KEY (workspace_id);
ALTER TABLE ONLY public.workspaces
    ADD CONSTRAINT pk_workspaces PRIMARY KEY (id);
ALTER TABLE ONLY public.api_tokens
    ADD CONSTRAINT uq_api_tokens_token_hash UNIQUE (token_hash);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT uq_events_subject_id_phase UNIQUE (subject_id, phase);
ALTER TABLE ONLY public.users
    ADD CONSTRAINT uq_users_email UNIQUE (email);
CREATE INDEX ix_api_tokens_user_id ON public.api_tokens USING btree (user_id);
CREATE INDEX ix_events_workspace_id ON public.events USING btree (workspace_id, id);
CREATE INDEX ix_sessions_fingerprint ON public.sessions USING btree (fingerprint);
CREATE INDEX ix_sessions_token_id ON public.sessions USING btree (token_id);
CREATE INDEX ix_sessions_user_id ON public.sessions USING btree (user_id);
CREATE INDEX ix_sessions_workspace_user ON public.sessions USING btree (workspace_id, user_id);
CREATE INDEX ix_shares_user_id ON public.shares USING btree (user_id);
CREATE INDEX ix_workspaces_owner_id ON public.workspaces USING btree (owner_id);
CREATE UNIQUE INDEX uq_sessions_held_key ON public.sessions USING btree (fingerprint) WHERE (released_at IS NULL);
CREATE UNIQUE INDEX uq_workspaces_live_title ON public.workspaces USING btree (title) WHERE (deleted_at IS NULL);
ALTER TABLE ONLY public.api_tokens
    ADD CONSTRAINT fk_api_tokens_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(id);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT fk_sessions_token_id_api_tokens FOREIGN KEY (token_id) REFERENCES public.api_tokens(id);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT fk_sessions_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(id);
ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT fk_sessions_workspace_id_workspaces FOREIGN KEY (workspace_id) REFERENCES public.workspaces(id);
ALTER TABLE ONLY public.shares
    ADD CONSTRAINT fk_shares_user_id_users FOREIGN KEY (user_id) REFERENCES public.users(id);
ALTER TABLE ONLY public.shares
    ADD CONSTRAINT fk_shares_workspace_id_workspaces FOREIGN KEY (workspace_id) REFERENCES public.workspaces(id);
ALTER TABLE ONLY public.workspace_host_keys
    ADD CONSTRAINT fk_workspace_host_keys_workspace_id_workspaces FOREIGN KEY (workspace_id) REFERENCES public.workspaces(id);
ALTER TABLE ONLY public.workspaces
    ADD CONSTRAINT fk_workspaces_owner_id_users FOREIGN KEY (owner_id) REFERENCES public.users(id);
