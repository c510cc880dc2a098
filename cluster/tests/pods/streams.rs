//! `kubectl exec`, `attach`, `run -it`, `cp` and `debug`.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::Case;
use crate::terminal::Terminal;
use crate::world::{IMAGE, Running, World};

pub(crate) const CASES: &[Case] = &[
    ("exec_streams_and_codes", exec),
    ("exec_at_a_terminal", exec_terminal),
    ("exec_by_plain_spdy", exec_spdy),
    ("cp_both_ways", cp),
    ("attach_with_and_without_input", attach),
    ("run_interactively", run),
    ("run_at_a_terminal", run_terminal),
    ("debug_containers", debug),
];

fn exec(world: &World) {
    world.ready_pod("ex", json!({}), json!({}));
    let script = "echo out; echo err >&2; exit 3";
    let (code, out, err) = world.run(&["exec", "ex", "--", "sh", "-c", script], None);
    assert_eq!((code, out.as_str()), (3, "out\n"));
    assert!(err.starts_with("err\n") && err.contains("exit code 3"), "{err}");
    // Standard input and its end.
    let input = "some words\n".repeat(100_000);
    let (code, out, err) = world.run(&["exec", "-i", "ex", "--", "cat"], Some(&input));
    assert!(code == 0 && out == input, "{code}: {} bytes, {err}", out.len());
    // Far more than a pipe holds, although the reader takes its time.
    let mut slow = world.command(&[
        "exec",
        "ex",
        "--",
        "sh",
        "-c",
        "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done",
    ]);
    let mut slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = slow.stdout.take().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut out, &mut said).unwrap();
    assert!(slow.wait().unwrap().success());
    assert!(
        said.ends_with("line 59999\n") && said.lines().count() == 60_000,
        "{} lines",
        said.lines().count()
    );
    // A child that is left behind holds nobody up.
    let (code, out, _) = world.run(&["exec", "ex", "--", "sh", "-c", "sleep 50 & echo gone"], None);
    assert_eq!((code, out.as_str()), (0, "gone\n"));
    let (code, _, err) = world.run(&["exec", "ex", "--", "/no/such/program"], None);
    assert!(code != 0 && err.contains("/no/such/program"), "{err}");
    let (code, _, err) = world.run(&["exec", "ex", "-c", "other", "--", "ls"], None);
    assert!(code != 0 && err.contains("container other is not valid for pod ex"), "{err}");
    world.delete("pod/ex");
}

fn exec_terminal(world: &World) {
    world.ready_pod("ex-tty", json!({}), json!({}));
    let mut shell = Terminal::of(world.command(&["exec", "-it", "ex-tty", "--", "sh"]), 91, 33);
    shell.write("tty=$(stty size); echo size $tty\n");
    shell.expect("size 33 91");
    shell.resize(57, 21);
    // The new size travels on its own: asked for until it is there.
    shell.write("until [ \"$(stty size)\" = '21 57' ]; do sleep 0.05; done; echo now $(stty size)\n");
    shell.expect("now 21 57");
    shell.write("echo $TERM; exit 5\n");
    shell.expect("xterm");
    assert_eq!(shell.end(), 5);
    world.delete("pod/ex-tty");
}

fn exec_spdy(world: &World) {
    world.ready_pod("ex-spdy", json!({}), json!({}));
    let mut command =
        world.command(&["exec", "-i", "ex-spdy", "--", "sh", "-c", "cat; echo err >&2; exit 4"]);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    let mut kubectl = Running::of(command);
    kubectl.child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(kubectl.line(), "hello\n");
    let (code, err) = kubectl.end();
    assert!(code == 4 && err.starts_with("err\n"), "{code}: {err}");
    let mut command = world.command(&["exec", "-it", "ex-spdy", "--", "sh"]);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
    let mut shell = Terminal::of(command, 70, 20);
    shell
        .write("until [ \"$(stty size)\" = '20 70' ]; do sleep 0.05; done; echo size $(stty size); exit 6\n");
    shell.expect("size 20 70");
    assert_eq!(shell.end(), 6);
    world.delete("pod/ex-spdy");
}

fn cp(world: &World) {
    world.ready_pod("copy", json!({}), json!({}));
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(dir.path().join("folder/big"), &bytes).unwrap();
    std::fs::write(dir.path().join("folder/small"), "x").unwrap();
    world.kubectl(&["cp", &here("folder"), "copy:/tmp/there"]);
    assert_eq!(world.kubectl(&["exec", "copy", "--", "ls", "/tmp/there"]), "big\nsmall\n");
    world.kubectl(&["cp", "copy:/tmp/there/big", &here("back")]);
    assert!(std::fs::read(dir.path().join("back")).unwrap() == bytes);
    world.kubectl(&["cp", "copy:/tmp/there", &here("all")]);
    assert!(std::fs::read(dir.path().join("all/big")).unwrap() == bytes);
    // kubectl ends at the end of the archive: it waits neither for the exit code nor for what tar says of a file that is not there.
    world.run(&["cp", "copy:/no/such", &here("none")], None);
    assert!(!dir.path().join("none").exists(), "nothing comes of a file that is not there");
    world.delete("pod/copy");
}

fn attach(world: &World) {
    let command = json!({"args": ["line", "7"], "stdin": true, "stdinOnce": true});
    world.pod("at", command, json!({"restartPolicy": "Never"}));
    world.until("pod/at", "{.status.phase}", "Running");
    let mut kubectl = world.spawn(&["attach", "-i", "at"]);
    kubectl.child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    // What was said before is in the log.
    assert_eq!(kubectl.line(), "got hello\n");
    assert_eq!(kubectl.end().0, 0);
    world.until("pod/at", "{.status.containerStatuses[0].state.terminated.exitCode}", "7");
    assert_eq!(world.kubectl(&["logs", "at"]), "waiting\ngot hello\n");
    world.delete("pod/at");
    // Without input: the output as it comes, to its end.
    let script = "while [ ! -e /tmp/go ]; do echo tick; sleep 0.05; done; echo one; echo two >&2";
    let plain = json!({"command": ["sh", "-c", script]});
    world.pod("at-out", plain, json!({"restartPolicy": "Never"}));
    world.until("pod/at-out", "{.status.phase}", "Running");
    let mut watching = world.spawn(&["attach", "at-out"]);
    // It listens when it hears something.
    assert_eq!(watching.line(), "tick\n");
    world.kubectl(&["exec", "at-out", "--", "touch", "/tmp/go"]);
    let after = std::iter::repeat_with(|| watching.line()).find(|line| line != "tick\n");
    assert_eq!(after.as_deref(), Some("one\n"));
    let (code, err) = watching.end();
    assert!(code == 0 && err.contains("two"), "{code}: {err}");
    let (code, _, err) = world.run(&["attach", "at-out"], None);
    assert!(code != 0 && (err.contains("completed pod") || err.contains("not running")), "{err}");
    world.delete("pod/at-out");
}

fn run(world: &World) {
    let image = format!("--image={IMAGE}");
    let args =
        ["run", "run-cat", "-i", "--rm", "--quiet", "--restart=Never", &image, "--command", "--", "cat"];
    let (code, out, err) = world.run(&args, Some("over there\n"));
    assert!(code == 0 && out.contains("over there\n"), "{code}: {out}{err}");
    let (_, _, err) = world.run(&["get", "pod", "run-cat"], None);
    assert!(err.contains("not found"), "{err}");
    let script = "read line; echo $line; exit 9";
    let args =
        ["run", "run-code", "-i", "--rm", "--restart=Never", &image, "--command", "--", "sh", "-c", script];
    let (code, out, err) = world.run(&args, Some("bye\n"));
    assert!(code == 9 && out.contains("bye\n"), "{code}: {out}{err}");
}

fn run_terminal(world: &World) {
    let image = format!("--image={IMAGE}");
    let args = ["run", "run-tty", "-it", "--rm", "--restart=Never", &image, "--command", "--", "sh"];
    let mut shell = Terminal::of(world.command(&args), 83, 29);
    // The prompt may be said before kubectl listens; an empty line makes another one.
    shell.write("\n");
    shell.expect("# ");
    shell.write("until [ \"$(stty size)\" = '29 83' ]; do sleep 0.05; done; echo size $(stty size)\n");
    shell.expect("size 29 83");
    shell.write("ls /dev/console > /dev/null && echo con''sole\n");
    shell.expect("console\r\n# ");
    // Ctrl-C goes to what runs, not to the shell.
    shell.write("cat\n");
    shell.write("heard\n");
    // Once as the terminal's echo, once by cat, which is there, then.
    shell.expect("heard\r\nheard\r\n");
    shell.write("\x03");
    shell.expect("# ");
    shell.write("echo still; exit 0\n");
    shell.expect("still\r\n");
    assert_eq!(shell.end(), 0);
    let (_, _, err) = world.run(&["get", "pod", "run-tty"], None);
    assert!(err.contains("not found"), "{err}");
}

fn debug(world: &World) {
    world.ready_pod("dbg", json!({}), json!({}));
    let image = format!("--image={IMAGE}");
    // It shares the pod's network.
    world.kubectl(&["debug", "dbg", &image, "-c", "look", "--", "/app/app", "hear", "127.0.0.1:7004"]);
    let ended = "{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    world.until("pod/dbg", ended, "0");
    assert_eq!(world.kubectl(&["logs", "dbg", "-c", "look"]), "goodbye\n");
    world.ready("dbg");
    let mut shell =
        Terminal::of(world.command(&["debug", "-it", "dbg", &image, "-c", "shell", "--", "sh"]), 80, 24);
    shell.write("\n");
    shell.expect("# ");
    shell.write("echo hello from $((40 + 2)); exit\n");
    shell.expect("hello from 42");
    shell.end();
    let (code, _, err) = world.run(&["debug", "dbg", &image, "-c", "c", "--", "ls"], None);
    assert!(code != 0, "a name that is taken: {err}");
    // It sees the processes of the container that it is to look into, and its files through them.
    world.kubectl(&["debug", "dbg", &image, "-c", "target", "--target=c", "--", "cat", "/proc/1/comm"]);
    // By its name: kubectl waits for what is not found, and gives up on an index that is too high yet.
    let ended = "{.status.ephemeralContainerStatuses[?(@.name==\"target\")].state.terminated.exitCode}";
    world.until("pod/dbg", ended, "0");
    assert_eq!(world.kubectl(&["logs", "dbg", "-c", "target"]), "app\n");
    assert_eq!(world.get("pod/dbg")["status"]["containerStatuses"][0]["restartCount"], 0);
    world.delete("pod/dbg");
}
