//! The scenarios of examples/sim with their stories. A reviewer reads the difference of the story. `UPDATE_EXPECT=1` writes them.

use std::path::PathBuf;

use expect_test::{expect, expect_file};
use vmkeep_sim::scenario;

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/sim")
}

#[test]
fn each_scenario_has_its_story() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(examples()).expect("a folder").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    assert!(files.len() >= 20, "{}", files.len());
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a file");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let report = scenario::run(&name, &text, 1).expect("a scenario");
        assert!(report.facts.violations.is_empty(), "{name}: {:?}", report.facts.violations);
        expect_file![path.with_extension("story")].assert_eq(&report.story());
        let again = scenario::run(&name, &text, 1).expect("a scenario");
        assert_eq!(report.json(), again.json(), "{name}: the same file and seed give the same bytes");
        for seed in 2..12 {
            let other = scenario::run(&name, &text, seed).expect("a scenario");
            assert!(other.facts.violations.is_empty(), "{name}, seed {seed}: {:?}", other.facts.violations);
        }
    }
}

#[test]
fn unknown_words_are_told_with_their_place() {
    let text = "nodes: {node1: {}, node2: {powr: on}}\nvms:\n  web: {node: node3, colour: red}\nsteps:\n  - {at: 5, do: [\"powr node1 off\"]}\nuntil: 10\n";
    let error = scenario::run("x.yaml", text, 1).expect_err("wrong words");
    let said: Vec<String> = error.problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
    expect![[r#"
        x.yaml:1:28: nodes.node2.powr: there is no field 'powr'; did you mean 'power'?
            1 | nodes: {node1: {}, node2: {powr: on}}
              |                            ^^^^
        x.yaml:3:22: vms.web.colour: there is no field 'colour'; known are node, run, max_restart, max_relocate, failback, priority, cpus and memory
            3 |   web: {node: node3, colour: red}
              |                      ^^^^^^"#]].assert_eq(&said.join("\n"));
    let text = "nodes: {node1: {}}\nsteps:\n  - {at: 5, do: [\"powr node1 off\", \"vm web started\"]}\n  - {at: 3, do: [arm]}\n";
    let error = scenario::run("x.yaml", text, 1).expect_err("wrong words");
    let said: Vec<String> = error.problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
    expect![[r#"
        x.yaml:3:18: steps[0].do[0]: there is no command 'powr'; did you mean 'power'?
            3 |   - {at: 5, do: ["powr node1 off", "vm web started"]}
              |                  ^^^^^^^^^^^^^^^^
        x.yaml:3:36: steps[0].do[1]: there is no VM 'web'
            3 |   - {at: 5, do: ["powr node1 off", "vm web started"]}
              |                                    ^^^^^^^^^^^^^^^^
        x.yaml:4:10: steps[1].at: 3 is not in order: the step before is at 5 s
            4 |   - {at: 3, do: [arm]}
              |          ^"#]]
    .assert_eq(&said.join("\n"));
}

#[test]
fn facts_have_the_fields_that_are_documented() {
    let text =
        "nodes: {node1: {}, node2: {}, node3: {}}\nvms: {web: {node: node3}}\nsteps: [{at: 60, do: [\"power node3 off\"]}]\nuntil: 200\n";
    let report = scenario::run("x.yaml", text, 1).expect("a scenario");
    expect![[r#"
        {
          "violations": [],
          "fenced": [
            {
              "node": "node3",
              "silent_at": 59.824,
              "sealed_at": 75.244,
              "confirmed_at": 98.247,
              "by": "watchdog"
            }
          ],
          "runs": [
            {
              "vm": "web",
              "node": "node3",
              "from": 4.535,
              "to": 60.0,
              "generation": 1
            },
            {
              "vm": "web",
              "node": "node1",
              "from": 100.031,
              "to": 200.0,
              "generation": 2
            }
          ],
          "recoveries": [
            {
              "vm": "web",
              "from": "node3",
              "to": "node1",
              "silent_at": 59.824,
              "running_at": 100.031
            }
          ],
          "final": {
            "web": "node1"
          },
          "states": {
            "web": "started"
          }
        }
    "#]]
    .assert_eq(&report.json());
}
