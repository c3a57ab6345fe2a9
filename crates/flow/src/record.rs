//! What is written down of runs: a database for all, and a folder for each.
//!
//! ```text
//! runs.db            SQLite in WAL mode, so it can be read while runs write: tables `runs` and `steps`
//! <id>/lock          held with flock(2) as long as somebody does the run
//! <id>/logs/<number> what a step said
//! <id>/work/         folders of steps; gone when the run is done
//! ```
//!
//! The database is written by one thread of the run, in transactions of all that came in the meantime. A run that was
//! killed has lost the last moments, no more, and its lock is free: so it is known that it was interrupted.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};
use serde::{Deserialize, Serialize};

/// The file of the database.
pub const DATABASE: &str = "runs.db";
/// How long another writer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the write-ahead log that the next who opens it may have to read again.
const LOG: u64 = 256 << 10;
/// Changes with the tables.
const FORM: i64 = 1;

/// How far a run, or a step, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Done,
    /// It was done before, in this run or another one.
    Reused,
    Failed,
    /// Somebody asked for it.
    Stopped,
    /// Who ran it is no more.
    Interrupted,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Done => "done",
            State::Reused => "reused",
            State::Failed => "failed",
            State::Stopped => "stopped",
            State::Interrupted => "interrupted",
        }
    }

    /// Anything unknown was written by another version, and is over.
    pub fn of(name: &str) -> State {
        let all = [State::Running, State::Done, State::Reused, State::Failed, State::Stopped];
        all.into_iter().find(|state| state.name() == name).unwrap_or(State::Interrupted)
    }
}

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct RunRow {
    pub id: String,
    /// Whose language it is in: `cwl`.
    pub kind: String,
    pub name: String,
    pub state: State,
    /// Milliseconds since 1970.
    pub began: i64,
    pub ended: Option<i64>,
    /// Of the process that does it.
    pub pid: i64,
    /// The words that it was started by.
    pub command: Vec<String>,
    /// The folder in which it was started.
    pub folder: String,
    /// Where outputs go.
    pub outdir: String,
    /// Of all that defines it, so that another one is not taken for it.
    pub digest: String,
    /// JSON.
    pub inputs: String,
    /// JSON, when it is done.
    pub outputs: Option<String>,
    /// Why it failed.
    pub message: Option<String>,
    /// [`crate::graph::Graph`] as JSON.
    pub graph: String,
}

/// One attempt at a step.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StepRow {
    /// From 1, in the order in which steps began.
    pub number: u64,
    /// Its place in the workflow: `main/align[3]`.
    pub name: String,
    /// From 1.
    pub attempt: u32,
    pub state: Option<State>,
    /// Milliseconds since 1970.
    pub began: i64,
    pub ended: Option<i64>,
    /// `0`, `3`, `signal 9`, `timed out`.
    pub exit: Option<String>,
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub peak_kibibytes: u64,
    pub cores: f64,
    pub mebibytes: u64,
    pub image: Option<String>,
    pub command: Vec<String>,
    /// Of what it is made of, to know it again.
    pub key: String,
    /// JSON.
    pub inputs: Option<String>,
    /// JSON.
    pub outputs: Option<String>,
    pub message: Option<String>,
    /// Whether it said anything.
    pub log: bool,
}

/// Now, in milliseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64)
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(
        "{DATABASE} was written by another version of this program (form {0}, and this one knows {FORM})"
    )]
    Form(i64),
}

/// Opens the database of a folder, and makes it where it is not there.
///
/// # Errors
/// SQLite's, or the database is another version's.
pub fn open(place: &Path) -> Result<Connection, Error> {
    let path = place.join(DATABASE);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let database = Connection::open_with_flags(path, flags)?;
    database.busy_timeout(PATIENCE)?;
    // The last to leave would write everything into the main file, with two waits for the disk.
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let mut form: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if form == 0 {
        // Where a file system has no shared memory for it, SQLite stays with its own mode, and everything works as well.
        database.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
        database.execute_batch("BEGIN IMMEDIATE")?;
        form = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if form == 0 {
            database.execute_batch(TABLES)?;
            form = FORM;
        }
        database.execute_batch("COMMIT")?;
    }
    if form != FORM {
        return Err(Error::Form(form));
    }
    // After a power cut the last transactions may be missing, and nothing is torn.
    database.execute_batch("PRAGMA synchronous=NORMAL")?;
    Ok(database)
}

const TABLES: &str = "
CREATE TABLE runs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    began INTEGER NOT NULL, ended INTEGER, pid INTEGER NOT NULL, command TEXT NOT NULL, folder TEXT NOT NULL,
    outdir TEXT NOT NULL, digest TEXT NOT NULL, inputs TEXT NOT NULL, outputs TEXT, message TEXT, graph TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX runs_by_time ON runs (began);
CREATE INDEX runs_left ON runs (began) WHERE state <> 'done';
CREATE TABLE steps (
    run TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    began INTEGER NOT NULL, ended INTEGER, exit TEXT, user_seconds REAL NOT NULL, system_seconds REAL NOT NULL,
    peak_kibibytes INTEGER NOT NULL, cores REAL NOT NULL, mebibytes INTEGER NOT NULL, image TEXT, command TEXT NOT NULL,
    key TEXT NOT NULL, inputs TEXT, outputs TEXT, message TEXT, log INTEGER NOT NULL, PRIMARY KEY (run, number)
) WITHOUT ROWID;
PRAGMA user_version=1;
";

fn json(words: &[String]) -> String {
    serde_json::to_string(words).unwrap_or_default()
}

pub fn write_run(database: &Connection, run: &RunRow) -> rusqlite::Result<()> {
    let mut statement = database.prepare_cached(
        "INSERT OR REPLACE INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?;
    statement.execute(params![
        run.id,
        run.kind,
        run.name,
        run.state.name(),
        run.began,
        run.ended,
        run.pid,
        json(&run.command),
        run.folder,
        run.outdir,
        run.digest,
        run.inputs,
        run.outputs,
        run.message,
        run.graph,
    ])?;
    Ok(())
}

pub fn write_step(database: &Connection, run: &str, step: &StepRow) -> rusqlite::Result<()> {
    let mut statement = database.prepare_cached(
        "INSERT OR REPLACE INTO steps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
         ?17, ?18, ?19, ?20)",
    )?;
    statement.execute(params![
        run,
        step.number.cast_signed(),
        step.name,
        step.attempt,
        step.state.unwrap_or(State::Running).name(),
        step.began,
        step.ended,
        step.exit,
        step.user_seconds,
        step.system_seconds,
        step.peak_kibibytes.cast_signed(),
        step.cores,
        step.mebibytes.cast_signed(),
        step.image,
        json(&step.command),
        step.key,
        step.inputs,
        step.outputs,
        step.message,
        step.log,
    ])?;
    Ok(())
}

const RUN: &str = "SELECT id, kind, name, state, began, ended, pid, command, folder, outdir, digest, inputs, outputs, \
                   message, graph FROM runs";

fn run_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<RunRow> {
    let words: String = row.get(7)?;
    let state: String = row.get(3)?;
    Ok(RunRow {
        id: row.get(0)?,
        kind: row.get(1)?,
        name: row.get(2)?,
        state: State::of(&state),
        began: row.get(4)?,
        ended: row.get(5)?,
        pid: row.get(6)?,
        command: serde_json::from_str(&words).unwrap_or_default(),
        folder: row.get(8)?,
        outdir: row.get(9)?,
        digest: row.get(10)?,
        inputs: row.get(11)?,
        outputs: row.get(12)?,
        message: row.get(13)?,
        graph: row.get(14)?,
    })
}

/// Runs whose ID begins with `prefix`, the latest first.
pub fn read_runs(database: &Connection, prefix: &str) -> rusqlite::Result<Vec<RunRow>> {
    let text = format!("{RUN} WHERE substr(id, 1, length(?1)) = ?1 ORDER BY began DESC, id");
    let mut statement = database.prepare(&text)?;
    statement.query_map([prefix], run_of)?.collect()
}

/// Steps of a run in the order in which they began.
pub fn read_steps(database: &Connection, run: &str) -> rusqlite::Result<Vec<StepRow>> {
    let mut statement = database.prepare(
        "SELECT number, name, attempt, state, began, ended, exit, user_seconds, system_seconds, peak_kibibytes, cores,
         mebibytes, image, command, key, inputs, outputs, message, log FROM steps WHERE run = ?1 ORDER BY number",
    )?;
    let row = |row: &rusqlite::Row<'_>| {
        let (state, words): (String, String) = (row.get(3)?, row.get(13)?);
        Ok(StepRow {
            number: row.get::<_, i64>(0)?.cast_unsigned(),
            name: row.get(1)?,
            attempt: row.get(2)?,
            state: Some(State::of(&state)),
            began: row.get(4)?,
            ended: row.get(5)?,
            exit: row.get(6)?,
            user_seconds: row.get(7)?,
            system_seconds: row.get(8)?,
            peak_kibibytes: row.get::<_, i64>(9)?.cast_unsigned(),
            cores: row.get(10)?,
            mebibytes: row.get::<_, i64>(11)?.cast_unsigned(),
            image: row.get(12)?,
            command: serde_json::from_str(&words).unwrap_or_default(),
            key: row.get(14)?,
            inputs: row.get(15)?,
            outputs: row.get(16)?,
            message: row.get(17)?,
            log: row.get(18)?,
        })
    };
    statement.query_map([run], row)?.collect()
}

/// How many steps of each run are in which state.
pub fn count_steps(database: &Connection) -> rusqlite::Result<Vec<(String, State, u64)>> {
    let mut statement = database.prepare(
        // The last attempt at each; SQLite takes the other columns from the row of the maximum.
        "SELECT run, state, count(*) FROM (SELECT run, name, state, max(number) FROM steps GROUP BY run, name)
         GROUP BY run, state",
    )?;
    let row = |row: &rusqlite::Row<'_>| {
        let state: String = row.get(1)?;
        Ok((row.get(0)?, State::of(&state), row.get::<_, i64>(2)?.cast_unsigned()))
    };
    statement.query_map([], row)?.collect()
}

pub fn remove_run(database: &mut Connection, run: &str) -> rusqlite::Result<()> {
    let transaction = database.transaction()?;
    transaction.execute("DELETE FROM steps WHERE run = ?1", [run])?;
    transaction.execute("DELETE FROM runs WHERE id = ?1", [run])?;
    transaction.commit()
}

/// Runs that began before a time, in milliseconds since 1970, and did not get done.
pub fn left_before(database: &Connection, time: i64) -> rusqlite::Result<Vec<String>> {
    let mut statement = database.prepare("SELECT id FROM runs WHERE began < ?1 AND state <> 'done'")?;
    statement.query_map([time], |row| row.get(0))?.collect()
}

/// Moves what is in the write-ahead log into the main file where there is more than a little, so that the next who opens it
/// has little to read. Where others read or write, one of them will do it.
pub fn settle(database: &Connection, place: &Path) -> rusqlite::Result<()> {
    let log = place.join(format!("{DATABASE}-wal"));
    if log.metadata().is_ok_and(|meta| meta.len() > LOG) {
        database.busy_timeout(Duration::ZERO)?;
        database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    Ok(())
}
