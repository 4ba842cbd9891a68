//! A program run in the guest by its agent: begun with guest-exec, then asked after until it ended or the time is over.
//!
//! The agent keeps the output until it is asked for, so a lost answer loses nothing; a time-out leaves the program running, and
//! says so.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;
use vmkeep_api::body::{ExecAnswer, ExecRequest};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::VmId;

use super::NodeHttp;
use super::answer::{Answer, Failure, parse};
use crate::hypervisor::{HvError, Hypervisor};

/// Each of stdout and stderr, and stdin.
const STREAM_BYTES_MAX: usize = 1 << 20;
/// Program, arguments: what a command line may hold.
const COMMAND_BYTES_MAX: usize = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// One answer of the agent.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks: soon at first, seldom later.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_LAST: Duration = Duration::from_millis(500);

pub async fn exec(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, body: Bytes) -> Answer<Json<ExecAnswer>> {
    let request: ExecRequest = parse(&body)?;
    let begin = begin(&request)?;
    let domain = node.our_domain(&uid).await?;
    let patience = request.timeout.map_or(PATIENCE, |t| Duration::from_secs(t.get())).min(PATIENCE_MAX);
    let until = Instant::now() + patience;
    let begun = agent(node.hv(), domain.uuid, &begin).await?;
    let pid = begun["pid"].as_i64().ok_or_else(|| odd(&begun))?;
    let ask = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
    let mut wait = LOOK_FIRST;
    loop {
        let status = agent(node.hv(), domain.uuid, &ask).await?;
        if status["exited"].as_bool().ok_or_else(|| odd(&status))? {
            return Ok(Json(ended(&status)?));
        }
        if Instant::now() + wait > until {
            let words = format!("the program did not end within {} s; it still runs in the guest as process {pid}", patience.as_secs());
            return Err(Error::new(Code::Refused, words).hint("give it longer with --timeout").into());
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_LAST);
    }
}

fn begin(request: &ExecRequest) -> Result<Value, Error> {
    let [program, arguments @ ..] = request.command.as_slice() else {
        return Err(Error::invalid("the command is empty").hint("program and arguments, like [\"uptime\", \"-p\"]"));
    };
    if program.is_empty() {
        return Err(Error::invalid("the program's name is empty"));
    }
    if request.command.iter().map(String::len).sum::<usize>() > COMMAND_BYTES_MAX {
        return Err(Error::new(Code::TooLarge, format!("the command is longer than {COMMAND_BYTES_MAX} bytes")));
    }
    let mut what = json!({"path": program, "arg": arguments, "capture-output": true});
    if let Some(stdin) = &request.stdin {
        if stdin.len() > STREAM_BYTES_MAX {
            return Err(Error::new(Code::TooLarge, format!("stdin is longer than {STREAM_BYTES_MAX} bytes")));
        }
        what["input-data"] = STANDARD.encode(stdin).into();
    }
    Ok(json!({"execute": "guest-exec", "arguments": what}))
}

/// The agent's `return`.
async fn agent(hv: &dyn Hypervisor, vm: VmId, command: &Value) -> Answer<Value> {
    let text = hv.agent_command(vm, command.to_string(), AGENT_PATIENCE).await.map_err(no_agent)?;
    let mut answer: Value = serde_json::from_str(&text).map_err(|_| odd(&Value::String(text)))?;
    Ok(answer["return"].take())
}

fn no_agent(error: HvError) -> Failure {
    match error {
        HvError::Refused(words) => Error::refused(words)
            .hint("the guest needs qemu-guest-agent, installed and running, and the VM `agent: true`; some distributions forbid guest-exec in its settings")
            .into(),
        other => other.into(),
    }
}

fn odd(answer: &Value) -> Error {
    let shown: String = answer.to_string().chars().take(200).collect();
    Error::refused(format!("the guest agent answered something strange: {shown}"))
}

fn ended(status: &Value) -> Result<ExecAnswer, Error> {
    let (stdout, cut_out) = output(status, "out-data")?;
    let (stderr, cut_err) = output(status, "err-data")?;
    let told = |key: &str| status[key].as_bool().unwrap_or(false);
    let number = |key: &str| status[key].as_i64().and_then(|n| i32::try_from(n).ok());
    Ok(ExecAnswer {
        exit_code: number("exitcode"),
        signal: number("signal"),
        stdout,
        stderr,
        truncated: cut_out || cut_err || told("out-truncated") || told("err-truncated"),
    })
}

/// One stream as text, and whether something is missing at its end.
fn output(status: &Value, key: &str) -> Result<(String, bool), Error> {
    let Some(data) = status[key].as_str() else { return Ok((String::new(), false)) };
    let mut bytes = STANDARD.decode(data).map_err(|_| odd(&status[key]))?;
    let cut = bytes.len() > STREAM_BYTES_MAX;
    bytes.truncate(STREAM_BYTES_MAX);
    Ok((String::from_utf8_lossy(&bytes).into_owned(), cut))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(status: &Value, expect: Expect) {
        let told = match ended(status) {
            Ok(a) => format!("{:?} {:?} {:?} {:?} truncated: {}", a.exit_code, a.signal, a.stdout, a.stderr, a.truncated),
            Err(e) => e.message,
        };
        expect.assert_eq(&told);
    }

    #[test]
    fn how_programs_end() {
        check(&json!({"exited": true, "exitcode": 3, "out-data": "aGk="}), expect![[r#"Some(3) None "hi" "" truncated: false"#]]);
        check(
            &json!({"exited": true, "signal": 9, "err-data": "/w==", "err-truncated": true}),
            expect![[r#"None Some(9) "" "�" truncated: true"#]],
        );
        check(&json!({"exited": true, "out-data": "?"}), expect![[r#"the guest agent answered something strange: "?""#]]);
        let long = STANDARD.encode(vec![b'x'; STREAM_BYTES_MAX + 1]);
        let answer = ended(&json!({"exited": true, "exitcode": 0, "out-data": long})).expect("it parses");
        assert_eq!((answer.stdout.len(), answer.truncated), (STREAM_BYTES_MAX, true));
    }

    #[test]
    fn commands_that_are_none() {
        let request = |command: &[&str], stdin: Option<String>| ExecRequest {
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            stdin,
            timeout: None,
        };
        for (bad, code) in [
            (request(&[], None), Code::Invalid),
            (request(&[""], None), Code::Invalid),
            (request(&["a", &"x".repeat(COMMAND_BYTES_MAX)], None), Code::TooLarge),
            (request(&["a"], Some("x".repeat(STREAM_BYTES_MAX + 1))), Code::TooLarge),
        ] {
            assert_eq!(begin(&bad).expect_err("it is refused").code, code);
        }
        expect![[r#"{"arguments":{"arg":["-c","a; b"],"capture-output":true,"input-data":"aGk=","path":"sh"},"execute":"guest-exec"}"#]]
            .assert_eq(&begin(&request(&["sh", "-c", "a; b"], Some("hi".into()))).expect("it is fine").to_string());
    }
}
