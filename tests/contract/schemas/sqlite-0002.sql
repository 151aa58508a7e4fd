BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE api_tokens (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	user_id INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	token_hash VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	last_used_at DATETIME, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	CONSTRAINT fk_api_tokens_user_id_users FOREIGN KEY(user_id) REFERENCES users (id), 
	CONSTRAINT uq_api_tokens_token_hash UNIQUE (token_hash)
);
INSERT INTO "api_tokens" VALUES(3,1,'laptop','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','2026-11-23 22:00:00.000000',NULL,NULL,NULL);
INSERT INTO "api_tokens" VALUES(4,7,'ünï ''''quoted''''','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','2026-11-23 22:00:00.000000',NULL,NULL,'2026-11-23 22:00:00.000000');
CREATE TABLE changes (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at DATETIME NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	workspace_id BIGINT, 
	session_id BIGINT, 
	user_id BIGINT
);
INSERT INTO "changes" VALUES(40,'2026-11-23 22:00:00.000000','created',9,NULL,NULL);
CREATE TABLE events (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	gateway VARCHAR(64) NOT NULL, 
	subject_id VARCHAR(32) NOT NULL, 
	phase VARCHAR(8) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	at DATETIME NOT NULL, 
	recorded_at DATETIME NOT NULL, 
	started_at DATETIME, 
	connection_id VARCHAR(32), 
	workspace_id BIGINT, 
	session_id BIGINT, 
	user_id BIGINT, 
	detail JSON NOT NULL, 
	CONSTRAINT uq_events_subject_id_phase UNIQUE (subject_id, phase)
);
INSERT INTO "events" VALUES(60,'embedded','00000000000000000000000000000000','start','command','2026-11-23 22:00:00.000000','2026-11-23 22:00:00.000000',NULL,NULL,9,NULL,NULL,'{"text": "echo \u00fc"}');
CREATE TABLE sessions (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	user_id INTEGER NOT NULL, 
	workspace_id INTEGER NOT NULL, 
	token_id INTEGER NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	public_key TEXT NOT NULL, 
	client VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME NOT NULL, 
	revoked_at DATETIME, 
	released_at DATETIME, 
	CONSTRAINT fk_sessions_user_id_users FOREIGN KEY(user_id) REFERENCES users (id), 
	CONSTRAINT fk_sessions_workspace_id_workspaces FOREIGN KEY(workspace_id) REFERENCES workspaces (id), 
	CONSTRAINT fk_sessions_token_id_api_tokens FOREIGN KEY(token_id) REFERENCES api_tokens (id)
);
INSERT INTO "sessions" VALUES(20,1,9,3,'SHA256:x','ssh-ed25519 AAAA','cli','2026-11-23 22:00:00.000000','2026-11-23 22:00:00.000000',NULL,'2026-11-23 22:00:00.000000');
INSERT INTO "sessions" VALUES(21,1,9,3,'SHA256:x','ssh-ed25519 AAAA','cli','2026-11-23 22:00:00.000000','2026-11-23 22:00:00.000000',NULL,NULL);
CREATE TABLE shares (
	workspace_id INTEGER NOT NULL, 
	user_id INTEGER NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_shares PRIMARY KEY (workspace_id, user_id), 
	CONSTRAINT fk_shares_workspace_id_workspaces FOREIGN KEY(workspace_id) REFERENCES workspaces (id), 
	CONSTRAINT fk_shares_user_id_users FOREIGN KEY(user_id) REFERENCES users (id), 
	CONSTRAINT ck_shares_role CHECK (role IN ('use', 'manage'))
);
INSERT INTO "shares" VALUES(9,7,'manage','2026-11-23 22:00:00.000000');
CREATE TABLE users (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	email VARCHAR(254) NOT NULL, 
	password_hash TEXT, 
	is_admin BOOLEAN NOT NULL, 
	created_at DATETIME NOT NULL, 
	disabled_at DATETIME, 
	CONSTRAINT uq_users_email UNIQUE (email)
);
INSERT INTO "users" VALUES(1,'ann@example.org','$argon2id$x',1,'2026-11-23 22:00:00.000000',NULL);
INSERT INTO "users" VALUES(7,'bob@example.org',NULL,0,'2026-11-23 22:00:00.000000','2026-11-23 22:00:00.000000');
CREATE TABLE workspace_host_keys (
	workspace_id INTEGER NOT NULL, 
	private_key TEXT NOT NULL, 
	CONSTRAINT pk_workspace_host_keys PRIMARY KEY (workspace_id), 
	CONSTRAINT fk_workspace_host_keys_workspace_id_workspaces FOREIGN KEY(workspace_id) REFERENCES workspaces (id)
);
INSERT INTO "workspace_host_keys" VALUES(9,'-----BEGIN
KEY-----
');
CREATE TABLE workspaces (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	title VARCHAR(64) NOT NULL, 
	custom_title VARCHAR(120) NOT NULL, 
	owner_id INTEGER NOT NULL, 
	runtime VARCHAR(40) NOT NULL, 
	host_public_key TEXT NOT NULL, 
	desired_state VARCHAR(16) NOT NULL, 
	observed_state VARCHAR(16) NOT NULL, 
	observed_at DATETIME NOT NULL, 
	activity VARCHAR(16), 
	reason TEXT, 
	endpoint_socket_path TEXT, 
	endpoint_host VARCHAR(253), 
	endpoint_port INTEGER, 
	failures INTEGER NOT NULL, 
	retry_at DATETIME, 
	lease_owner VARCHAR(80), 
	lease_expires_at DATETIME, 
	checkpoints JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	deleted_at DATETIME, 
	CONSTRAINT fk_workspaces_owner_id_users FOREIGN KEY(owner_id) REFERENCES users (id), 
	CONSTRAINT ck_workspaces_desired_state CHECK (desired_state IN ('running', 'stopped', 'deleted')), 
	CONSTRAINT ck_workspaces_observed_state CHECK (observed_state IN ('running', 'stopped', 'unknown')), 
	CONSTRAINT ck_workspaces_activity CHECK (activity IS NULL OR activity IN ('starting', 'stopping', 'deleting'))
);
INSERT INTO "workspaces" VALUES(5,'same-title','',1,'local','ssh-ed25519 AAAA','deleted','stopped','2026-11-23 22:00:00.000000',NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,'[]','2026-11-23 22:00:00.000000','2026-11-23 22:00:00.000000');
INSERT INTO "workspaces" VALUES(9,'same-title','',1,'local','ssh-ed25519 AAAA','running','running','2026-11-23 22:00:00.000000',NULL,NULL,'/run/x.sock',NULL,NULL,0,NULL,NULL,NULL,'[{"step": "keeper", "record": {"pid": 4711}}]','2026-11-23 22:00:00.000000',NULL);
CREATE INDEX ix_api_tokens_user_id ON api_tokens (user_id);
CREATE INDEX ix_workspaces_owner_id ON workspaces (owner_id);
CREATE UNIQUE INDEX uq_workspaces_live_title ON workspaces (title) WHERE deleted_at IS NULL;
CREATE INDEX ix_shares_user_id ON shares (user_id);
CREATE INDEX ix_sessions_user_id ON sessions (user_id);
CREATE INDEX ix_sessions_token_id ON sessions (token_id);
CREATE INDEX ix_sessions_fingerprint ON sessions (fingerprint);
CREATE INDEX ix_sessions_workspace_user ON sessions (workspace_id, user_id);
CREATE UNIQUE INDEX uq_sessions_held_key ON sessions (fingerprint) WHERE released_at IS NULL;
CREATE INDEX ix_events_workspace_id ON events (workspace_id, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('users',7);
INSERT INTO "sqlite_sequence" VALUES('api_tokens',4);
INSERT INTO "sqlite_sequence" VALUES('workspaces',9);
INSERT INTO "sqlite_sequence" VALUES('sessions',21);
INSERT INTO "sqlite_sequence" VALUES('changes',40);
INSERT INTO "sqlite_sequence" VALUES('events',60);
COMMIT;
