//! The processes of a training run: `nsparse train --processes N` starts the program N − 1 times more on this
//! machine. What they have to know to join travels in their environment; they end with the process that started
//! them, whatever ends it.

use std::io::Read as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nsparse_core::Cancel;
use nsparse_trainer::parallel::{Invitation, Meeting, Team, join};

use crate::failure::{Failure, world};

const ADDRESS: &str = "NSPARSE_RANKS_ADDRESS";
const TOKEN: &str = "NSPARSE_RANKS_TOKEN";
const RANK: &str = "NSPARSE_RANK";
const RANKS: &str = "NSPARSE_RANKS";
/// Read by the thread pool itself.
const THREADS: &str = "RAYON_NUM_THREADS";
/// A process that is to end by itself gets so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The other processes; dropping them ends them.
pub(crate) struct Ranks {
    /// Rank 1 first.
    children: Vec<Rank>,
}

struct Rank {
    child: Child,
    /// Its end is what the process waits for: it comes when this process is gone.
    _stdin: Option<ChildStdin>,
    stderr: Option<JoinHandle<String>>,
}

impl Ranks {
    /// Starts ranks `1 .. size` and waits until they are there. Every process gets an equal part of the cores, unless
    /// the user has said how many threads one has.
    pub(crate) fn start(size: usize, cancel: &Cancel) -> anyhow::Result<(Self, Team)> {
        let threads = std::env::var_os(THREADS).is_none().then(|| {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            (cores / size).max(1)
        });
        if let Some(threads) = threads {
            // Where a pool is there already it stays as it is: more threads are slower, not wrong.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        let meeting = Meeting::open()?;
        let mut ranks = Self { children: Vec::with_capacity(size) };
        for rank in 1..size {
            ranks.children.push(Rank::start(meeting.invitation(), rank, size, threads)?);
        }
        let mut gone = None;
        let met = meeting.wait(size, || {
            cancel.check()?;
            gone = ranks.children.iter_mut().position(|r| matches!(r.child.try_wait(), Ok(Some(_)))).map(|i| i + 1);
            match gone {
                Some(rank) => Err(nsparse_trainer::Error::lost(rank, "it ended before it joined".to_owned())),
                None => Ok(()),
            }
        });
        match met {
            Ok(link) => Ok((ranks, Team::new(Box::new(link)))),
            Err(error) => Err(ranks.explain(error.into())),
        }
    }

    /// The processes' numbers, rank 1's first.
    pub(crate) fn process_ids(&self) -> Vec<u32> {
        self.children.iter().map(|r| r.child.id()).collect()
    }

    /// Waits for the end of all processes after a run that ended well.
    pub(crate) fn finish(mut self) {
        for rank in &mut self.children {
            rank.wait(PATIENCE);
        }
    }

    /// An error of the run; where it is that a rank is gone, with what became of its process and what that said.
    pub(crate) fn explain(mut self, error: anyhow::Error) -> anyhow::Error {
        let Some(&nsparse_trainer::Error::Rank { rank, is_gone: true, .. }) = error.downcast_ref() else {
            return error;
        };
        let Some(gone) = rank.checked_sub(1).and_then(|i| self.children.get_mut(i)) else { return error };
        let ended = gone.wait(PATIENCE);
        let id = gone.child.id();
        let how = match ended {
            Some(status) => status.to_string(),
            None => "it does not answer".to_owned(),
        };
        let said = gone.last_words();
        let said = if said.is_empty() { String::new() } else { format!("; it said: {said}") };
        let hint = Failure::from(&error).hint.unwrap_or_default();
        world(format!("Process {id} of the run (rank {rank}) is gone: {how}{said}"), hint)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.children {
            // By their own handles; one that has ended already is not signalled.
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

impl Rank {
    fn start(invitation: &Invitation, rank: usize, size: usize, threads: Option<usize>) -> anyhow::Result<Self> {
        let failed = |e: std::io::Error| world(format!("Failed to start another process of nsparse: {e}"), "");
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .args(["--quiet", "train-rank"])
            .env(ADDRESS, invitation.address.to_string())
            .env(TOKEN, &invitation.token)
            .env(RANK, rank.to_string())
            .env(RANKS, size.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(threads) = threads {
            command.env(THREADS, threads.to_string());
        }
        #[cfg(unix)]
        {
            // Ctrl-C goes to all processes of a terminal's group; only the first is to hear it, and says when to end.
            use std::os::unix::process::CommandExt as _;
            command.process_group(0);
        }
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let stderr = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                // What was read before an error is all that can be told.
                let _ = pipe.read_to_end(&mut all);
                String::from_utf8_lossy(&all).into_owned()
            })
        });
        Ok(Self { child, _stdin: stdin, stderr })
    }

    /// Waits for the process's end, but not for ever.
    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(5)),
                _ => return None,
            }
        }
    }

    /// The error that a process that has ended printed.
    fn last_words(&mut self) -> String {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            return String::new();
        }
        let said = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let error = said.lines().find_map(|l| l.strip_prefix("error: "));
        error.or(said.lines().last()).unwrap_or_default().to_owned()
    }
}

/// The run that this process was started for, as one of its ranks; from here on it ends when its parent does.
pub(crate) fn team_of_this_process() -> anyhow::Result<Team> {
    let read = |name: &str| std::env::var(name).ok();
    let (Some(address), Some(token), Some(rank), Some(size)) = (
        read(ADDRESS).and_then(|a| a.parse().ok()),
        read(TOKEN),
        read(RANK).and_then(|r| r.parse().ok()),
        read(RANKS).and_then(|s| s.parse().ok()),
    ) else {
        return Err(crate::failure::usage(
            "`nsparse train-rank` is a part of a run in several processes",
            "start one with `nsparse train RECIPE --processes N`",
        ));
    };
    end_with_the_parent();
    Ok(Team::new(Box::new(join(&Invitation { address, token }, rank, size)?)))
}

/// Ends this process as soon as the one that started it is gone: then its standard input ends.
fn end_with_the_parent() {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        #[expect(clippy::exit, reason = "nothing of this process is to be kept, and no other thread would notice")]
        std::process::exit(3);
    });
}
