//! The official image as a container: where an engine answers and the image is there or can be had.

use std::process::{Command, Stdio};

use nsparse_core::Progress;

use crate::error::{Error, Result};

/// The label by which our containers are known.
const LABEL: &str = "io.nsparse.node";

/// The official image of a version.
pub(crate) fn official_image(version: &str) -> String {
    format!("opensearchproject/opensearch:{version}")
}

/// Whether a container engine answers.
pub(crate) fn answers() -> bool {
    docker(&["info", "--format", "{{.ServerVersion}}"]).is_ok()
}

/// Whether the image is here, or could be pulled.
///
/// # Errors
/// The engine's own words where it is neither.
pub(crate) fn have_image(image: &str, progress: &dyn Progress) -> Result<()> {
    if docker(&["image", "inspect", "--format", "{{.Id}}", image]).is_ok() {
        return Ok(());
    }
    let task = progress.start(&format!("Pulling {image}"), 0);
    task.message("docker pull");
    docker(&["pull", "--quiet", image]).map(|_| ()).map_err(|why| {
        Error::world(
            format!("The image `{image}` is not here and cannot be pulled: {why}"),
            "check the network, or leave Docker out: the node is then assembled with mvn",
        )
    })
}

/// Starts a container on a loopback port; gives its id.
///
/// # Errors
/// The engine's own words.
pub(crate) fn run(image: &str, port: u16, heap: &str) -> Result<String> {
    let arguments = run_arguments(image, port, heap);
    let id = docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).map_err(|why| {
        Error::world(
            format!("The container could not be started: {why}"),
            format!("see `docker ps -a --filter label={LABEL}`; another --port may help"),
        )
    })?;
    Ok(id)
}

fn run_arguments(image: &str, port: u16, heap: &str) -> Vec<String> {
    let mut arguments: Vec<String> = ["run", "--detach", "--label"].map(str::to_owned).to_vec();
    arguments.push(format!("{LABEL}={port}"));
    arguments.extend(["--publish".to_owned(), format!("127.0.0.1:{port}:9200")]);
    let settings = [
        "discovery.type=single-node".to_owned(),
        "DISABLE_SECURITY_PLUGIN=true".to_owned(),
        "DISABLE_INSTALL_DEMO_CONFIG=true".to_owned(),
        "DISABLE_PERFORMANCE_ANALYZER_AGENT_CLI=true".to_owned(),
        "cluster.routing.allocation.disk.threshold_enabled=false".to_owned(),
        format!("OPENSEARCH_JAVA_OPTS=-Xms{heap} -Xmx{heap}"),
        // One node does everything here, models included; 100 switches a memory breaker off.
        "plugins.ml_commons.only_run_on_ml_node=false".to_owned(),
        "plugins.ml_commons.native_memory_threshold=100".to_owned(),
        "plugins.ml_commons.jvm_heap_memory_threshold=100".to_owned(),
        "plugins.ml_commons.allow_registering_model_via_local_file=true".to_owned(),
    ];
    for setting in settings {
        arguments.extend(["--env".to_owned(), setting]);
    }
    arguments.push(image.to_owned());
    arguments
}

/// Whether a container runs.
pub(crate) fn is_running(id: &str) -> bool {
    docker(&["inspect", "--format", "{{.State.Running}}", id]).is_ok_and(|answer| answer == "true")
}

/// Removes a container of ours with its data; one that is gone already is fine.
///
/// # Errors
/// The engine's own words.
pub(crate) fn remove(id: &str) -> Result<()> {
    match docker(&["rm", "--force", "--volumes", id]) {
        Ok(_) => Ok(()),
        Err(why) if why.to_lowercase().contains("no such container") => Ok(()),
        Err(why) => Err(Error::world(
            format!("The container {id} could not be removed: {why}"),
            "start Docker, then run `nsparse cluster down` again",
        )),
    }
}

/// A container's last log lines, for an error message.
pub(crate) fn last_lines(id: &str, count: usize) -> String {
    let output = Command::new("docker").args(["logs", "--tail", &count.to_string(), id]).output();
    output.map_or_else(
        |e| e.to_string(),
        |o| String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr),
    )
}

/// Runs docker; its trimmed output, or the last line of what it complained about.
fn docker(arguments: &[&str]) -> std::result::Result<String, String> {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(complaint.lines().last().unwrap_or("no reason given").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_listens_on_loopback_only_and_may_run_models() {
        let arguments = run_arguments(&official_image("2.16.0"), 9201, "1g").join(" ");
        assert!(arguments.contains("--publish 127.0.0.1:9201:9200 "));
        assert!(arguments.contains("OPENSEARCH_JAVA_OPTS=-Xms1g -Xmx1g"));
        assert!(arguments.contains("plugins.ml_commons.only_run_on_ml_node=false"));
        assert!(arguments.ends_with("opensearchproject/opensearch:2.16.0"));
    }
}
