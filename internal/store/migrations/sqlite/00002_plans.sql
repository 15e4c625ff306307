-- +goose Up
ALTER TABLE jobs ADD COLUMN parent TEXT NOT NULL DEFAULT '';
CREATE INDEX jobs_parent ON jobs (parent, created_at DESC, id DESC) WHERE parent <> '';

CREATE TABLE plans (
    id      TEXT    NOT NULL PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    body    TEXT    NOT NULL
) STRICT;

CREATE TABLE plan_texts (
    plan       TEXT    NOT NULL REFERENCES plans (id) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    applied_at INTEGER NOT NULL,
    text       TEXT    NOT NULL,
    PRIMARY KEY (plan, version)
) STRICT;
