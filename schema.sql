-- The tables of aiolease for MySQL 8.0 and MariaDB 10.6, or newer.
--
-- aiolease creates them at first use if they are missing and if its database user may. Where it may not, run this
-- file once by hand; `python -m aiolease schema` prints it. It may be run again without harm. Tools that compare a
-- schema with models (Alembic's autogenerate) must leave these tables alone.
--
-- Every moment is UTC by the database's own clock, UTC_TIMESTAMP(6). Names are compared byte for byte.

-- Which term may still commit. Written by claims, fenced commits and the ledger only, so that neither ever waits for a
-- heartbeat. It also remembers the highest token of a lease whose row was deleted.
CREATE TABLE IF NOT EXISTS aiolease_fence (
    name    VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    holder  VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL,      -- of the latest claim
    token   BIGINT UNSIGNED NOT NULL,                                     -- of the latest claim
    fence   BIGINT UNSIGNED NOT NULL DEFAULT 0,                           -- counts the fenced commits
    PRIMARY KEY (name)
) ENGINE = InnoDB;

-- One row per lease; it is never deleted.
CREATE TABLE IF NOT EXISTS aiolease_lease (
    name         VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    holder       VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NULL, -- host-pid-uuid4hex; NULL: released
    token        BIGINT UNSIGNED NOT NULL,                                -- the fencing token: rises with every term
    beat         BIGINT UNSIGNED NOT NULL,                                -- the number of the latest renewal
    elected_at   DATETIME(6) NOT NULL,                                    -- when the term began
    renewed_at   DATETIME(6) NOT NULL,                                    -- when it was last renewed
    expires_at   DATETIME(6) NOT NULL,                                    -- from when on another may claim it
    resign_token BIGINT UNSIGNED NULL,                                    -- the term that was asked to resign
    PRIMARY KEY (name)
) ENGINE = InnoDB;

-- The ledger: what the leaders of a lease know of their jobs. A job's ticks up to the latest of known_since,
-- schedule_since, resumed_at, high_tick and paused_until are settled: none of them is run again, or for the first time.
-- The row of the job 'all jobs' keeps the pause of a whole lease; the jobs that it pauses have its paused_at.
CREATE TABLE IF NOT EXISTS aiolease_job (
    lease          VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    job            VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    schedule       VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, -- 'every 30s', 'cron 0 9 * * *'
    timezone       VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL, -- of the schedule; '': it has none
    known_since    DATETIME(6) NOT NULL,                                  -- when a leader first had this job
    schedule_since DATETIME(6) NOT NULL,                                  -- when it first had this schedule
    resumed_at     DATETIME(6) NULL,                                      -- ticks before it are not missed
    paused_at      DATETIME(6) NULL,                                      -- NULL: not paused
    high_tick      DATETIME(6) NULL,                                      -- the newest tick that was claimed
    requested_at   DATETIME(6) NULL,                                      -- triggered, until the leader sees it
    paused_until   DATETIME(6) NULL,                                      -- when the pause ends by itself
    pause_note     VARCHAR(255) CHARACTER SET utf8mb4 NULL,               -- what was noted with it
    asked_at       DATETIME(6) NULL,                                      -- runs were queued by hand, until it reads them
    cancel_at      DATETIME(6) NULL,                                      -- its runs are to be cancelled, until they are
    backfill_since DATETIME(6) NULL,                                      -- ticks still to be queued: from here
    backfill_until DATETIME(6) NULL,                                      -- to here
    token          BIGINT UNSIGNED NULL,                                  -- the latest term whose leader has this job
    PRIMARY KEY (lease, job)
) ENGINE = InnoDB;

-- One row per tick that was claimed, and one per range of ticks that were skipped together. The rows of the job 'a term'
-- are terms: the tick is their beginning.
CREATE TABLE IF NOT EXISTS aiolease_run (
    lease       VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    job         VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    tick        DATETIME(6) NOT NULL,                                     -- when it fell due; the last of a range
    attempt     INT UNSIGNED NOT NULL,
    token       BIGINT UNSIGNED NOT NULL,                                 -- the term that claimed it last
    holder      VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status      ENUM('queued', 'running', 'succeeded', 'failed', 'lost', 'skipped')
                CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    started_at  DATETIME(6) NULL,
    finished_at DATETIME(6) NULL,
    error       VARCHAR(1000) CHARACTER SET utf8mb4 NULL,                 -- of a failed run; why it was skipped
    tick_from   DATETIME(6) NULL,                                         -- the first of a range of skipped ticks
    `count`     BIGINT UNSIGNED NULL,                                     -- how many ticks were skipped
    not_before  DATETIME(6) NULL,                                         -- queued to be tried again, or by hand
    failures    INT UNSIGNED NOT NULL DEFAULT 0,                          -- attempts that failed, and were tried again
    uncounted   INT UNSIGNED NOT NULL DEFAULT 0,                          -- attempts that do not count as lost
    request     VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NULL,   -- 'trigger', 'rerun', 'backfill'
    earlier     VARCHAR(4000) CHARACTER SET utf8mb4 NULL,                 -- how earlier attempts ended: a line for each
    PRIMARY KEY (lease, job, tick),
    KEY unfinished (lease, status, not_before)
) ENGINE = InnoDB;

-- What the tables have, as the token of a row that no lease can be named like, since it has a space. Not for tables of
-- an older revision, which lack columns: `python -m aiolease migrate` brings them to this one.
INSERT INTO aiolease_lease (name, token, beat, elected_at, renewed_at, expires_at)
SELECT 'schema revision', 3, 0, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6)
FROM information_schema.statistics
WHERE table_schema = DATABASE() AND table_name = 'aiolease_run' AND column_name = 'not_before'
ON DUPLICATE KEY UPDATE aiolease_lease.token = GREATEST(aiolease_lease.token, 3);

-- The version of this schema: who needs another cannot work with these tables.
INSERT INTO aiolease_lease (name, token, beat, elected_at, renewed_at, expires_at)
VALUES ('schema version', 2, 0, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))
ON DUPLICATE KEY UPDATE token = GREATEST(token, 2);
