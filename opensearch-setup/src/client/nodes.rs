//! Which node a request goes to: each in turn, with a rest for those that failed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Url;

use super::urls;

/// How long a node rests after its first failure; doubled with each further one.
const FIRST_REST: Duration = Duration::from_secs(5);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_mins(1);

/// The nodes of a cluster that we were told of.
#[derive(Debug)]
pub(super) struct Nodes {
    list: Vec<Node>,
    next: AtomicUsize,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    /// Its address without a slash at the end, as it stands before a path and in messages.
    pub(super) url: String,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// Until when it rests.
    until: Option<Instant>,
}

impl Nodes {
    pub(super) fn new(list: &[Url]) -> Self {
        let node = |url: &Url| Node { url: urls::shown(url), state: Mutex::default() };
        Self { list: list.iter().map(node).collect(), next: AtomicUsize::new(0) }
    }

    /// All nodes, resting or not.
    pub(super) fn all(&self) -> &[Node] {
        &self.list
    }

    /// The nodes to try for one request, in this order: those that do not rest, another first each time. Where all
    /// rest, all of them, the one whose rest ends first at the front: no answer is worse than a late one.
    pub(super) fn turn(&self, now: Instant) -> Vec<&Node> {
        let count = self.list.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let rotated = (0..count).map(|i| &self.list[(first + i) % count]);
        let awake: Vec<&Node> = rotated.filter(|n| !n.rests(now)).collect();
        if !awake.is_empty() {
            return awake;
        }
        let mut all: Vec<&Node> = self.list.iter().collect();
        all.sort_by_key(|n| n.state().until);
        all
    }
}

impl Node {
    fn state(&self) -> State {
        self.state.lock().map_or_else(|poisoned| *poisoned.into_inner(), |state| *state)
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }

    fn rests(&self, now: Instant) -> bool {
        self.state().until.is_some_and(|until| now < until)
    }

    /// It answered: it is asked in turn again.
    pub(super) fn answered(&self) {
        self.set(State::default());
    }

    /// It did not answer, or said that it cannot: it rests for a while, longer each time.
    pub(super) fn failed(&self, now: Instant) {
        let failures = self.state().failures.saturating_add(1);
        let rest = FIRST_REST.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_REST);
        self.set(State { failures, until: Some(now + rest) });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    fn nodes(names: &[&str]) -> Nodes {
        Nodes::new(&names.iter().map(|n| Url::parse(&format!("http://{n}:9200/")).unwrap()).collect::<Vec<_>>())
    }

    fn names(turn: &[&Node]) -> String {
        turn.iter().map(|n| n.url.strip_prefix("http://").unwrap().trim_end_matches(":9200")).collect()
    }

    #[test]
    fn each_comes_first_in_turn() {
        let nodes = nodes(&["a", "b", "c"]);
        let now = Instant::now();
        let turns: Vec<String> = (0..4).map(|_| names(&nodes.turn(now))).collect();
        assert_eq!(turns, ["abc", "bca", "cab", "abc"]);
    }

    #[test]
    fn a_failed_node_rests_and_is_tried_again() {
        let nodes = nodes(&["a", "b"]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        nodes.all()[0].failed(start);
        assert_eq!(names(&nodes.turn(at(1))), "b");
        assert_eq!(names(&nodes.turn(at(4))), "b");
        // After 5 s it is asked again; failing again costs it 10 s.
        assert!(names(&nodes.turn(at(5))).contains('a'));
        nodes.all()[0].failed(at(5));
        assert_eq!(names(&nodes.turn(at(14))), "b");
        assert_eq!(names(&nodes.turn(at(15))).len(), 2);
        // Never longer than a minute, however often.
        for _ in 0..40 {
            nodes.all()[0].failed(at(15));
        }
        assert_eq!(names(&nodes.turn(at(74))), "b");
        assert_eq!(names(&nodes.turn(at(75))).len(), 2);
        nodes.all()[0].answered();
        nodes.all()[0].failed(at(100));
        assert_eq!(names(&nodes.turn(at(105))).len(), 2, "an answer makes the next rest short again");
    }

    #[test]
    fn where_all_rest_the_soonest_is_asked() {
        let nodes = nodes(&["a", "b"]);
        let now = Instant::now();
        nodes.all()[0].failed(now);
        nodes.all()[0].failed(now);
        nodes.all()[1].failed(now);
        assert_eq!(names(&nodes.turn(now)), "ba");
    }
}
