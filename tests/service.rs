//! The agent under a service manager.

use std::path::Path;

use wayside_tests::agent::{self, Agent};
use wayside_tests::service::ServiceManager;

const TOKEN: &str = "tell-only-the-monitor";
const NEW_TOKEN: &str = "and-now-another-one";

/// A gateway whose port and Kafka are away, which is no reason not to run.
fn lonely_agent(name: &str) -> Agent {
    Agent::new(name, "127.0.0.1:9", &agent::serial_source("line", Path::new("/nowhere/tty"), "native"))
}

#[test]
fn the_service_manager_hears_that_the_agent_is_ready_alive_and_stopping() {
    let manager = ServiceManager::new();
    let mut agent = lonely_agent("service");
    agent.start_with(manager.environment());
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=backlog 0 records, 0 of 1 sources connected");
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1");
    }
    agent.stop();
    manager.wait_for("STOPPING=1");
}

#[test]
fn sighup_rereads_the_log_level_and_a_broken_file_changes_nothing() {
    let mut agent = lonely_agent("sighup");
    agent.start();
    agent.configure("[telemetry]\n", "[telemetry]\nlog_level = \"info,wayside::cli=debug\"\n");
    agent.reload();
    agent.wait_for_log("telemetry.log_level changed");
    agent.configure("replication_factor = 1", "replication_factor = 5");
    agent.reload();
    agent.wait_for_log("keys=replicate.replication_factor");
    agent.configure("replication_factor = 5", "replication_factor = 500");
    agent.reload();
    agent.wait_for_log("replicate.replication_factor = 500: must be 1 to 100");
    agent.stop();
}

#[test]
fn an_endpoint_that_others_can_reach_answers_to_the_token_alone_which_is_shown_nowhere() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
    let place = format!("file:{}", file.path().display());
    let mut agent = lonely_agent("token");
    agent.configure("listen = \"127.0.0.1:", "listen = \"0.0.0.0:");
    let said = agent.command_output(&["check", "-c", "CONFIG"]);
    assert!(said.contains("telemetry.token must be set"), "{said}");
    agent.configure("[telemetry]\n", &format!("[telemetry]\ntoken = \"{TOKEN}\"\n"));
    let pasted = agent.command_output(&["check", "-c", "CONFIG"]);
    assert!(pasted.contains("telemetry.token = (not shown): must be file:PATH"), "{pasted}");
    agent.configure(TOKEN, &format!("{place}\"\nlog_level = \"debug"));
    agent.start();

    let status =
        |path: &str, token: &str| agent.answer(path, &format!("Authorization: Bearer {token}\r\n")).0;
    for path in ["/metrics", "/healthz"] {
        assert_eq!(agent.answer(path, "").0, 401);
        assert_eq!((status(path, "wrong"), status(path, TOKEN)), (401, 200));
    }
    let url = agent.url();
    let asked = |arguments: &[&str]| agent.command_output(&[&["status"], arguments].concat());
    assert!(asked(&["--url", &url]).contains("it wants a token"));
    for arguments in [["-c", "CONFIG", "--json"].as_slice(), &["--url", &url, "--token", &place, "--json"]] {
        let said = asked(arguments);
        assert!(said.contains("uptime_seconds"), "{said}");
    }

    std::fs::write(file.path(), NEW_TOKEN).unwrap();
    assert_eq!((status("/healthz", TOKEN), status("/healthz", NEW_TOKEN)), (401, 200));
    let authorization = format!("Authorization: Bearer {NEW_TOKEN}\r\n");
    let pages = ["/metrics", "/healthz"].map(|path| agent.answer(path, &authorization).1);
    let refused = pages[0].lines().find_map(|line| line.strip_prefix("wayside_telemetry_refused_total "));
    assert!(refused.is_some_and(|count| count.parse::<u32>().unwrap() >= 6), "{refused:?}");
    let commands = [
        agent.output(),
        pasted,
        asked(&["-c", "CONFIG"]),
        asked(&["--url", &url, "--token", NEW_TOKEN]),
        agent.command_output(&["--help"]),
        agent.command_output(&["status", "--help"]),
        agent.command_output(&["check", "-c", "CONFIG"]),
        agent.command_output(&["check", "--connect", "-c", "CONFIG"]),
    ];
    for text in pages.iter().chain(&commands) {
        assert!(!text.contains(TOKEN) && !text.contains(NEW_TOKEN), "shows the token:\n{text}");
    }
    agent.stop();
}
