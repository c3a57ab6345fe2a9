//! What root sets up for all users of a machine: ranges of IDs, endpoints, who may run what. Root's files of /etc are a
//! copy here, which is seen in a mount namespace only.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;

use desk::{Desk, Said, installed};

/// Shows the copy of /etc in `$0` to what comes next.
const WITH_ETC: &str = "mount --bind $0/etc /etc && exec \"$@\"";

fn root_desk() -> Option<Desk> {
    if !rustix::process::geteuid().is_root() {
        println!("skip: only root sets up a machine");
        return None;
    }
    if !installed("/bin/busybox") {
        return None;
    }
    let desk = Desk::new(false);
    let copied = Command::new("cp").args(["-a", "/etc"]).arg(desk.path("etc")).status().unwrap();
    assert!(copied.success());
    for name in ["etc/apptainer", "etc/singularity"] {
        let _ = fs::remove_dir_all(desk.path(name));
    }
    for name in ["subuid", "subgid"] {
        fs::write(desk.path("etc").join(name), "ada:100000:65536\n").unwrap();
    }
    Some(desk)
}

fn line(desk: &Desk, text: &str) -> Said {
    let plain = desk.command(&["sh", "-c", text]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_ETC]).arg(desk.path("")).arg(plain.get_program());
    command.args(plain.get_args()).env_clear().current_dir(plain.get_current_dir().unwrap());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Said::of(command.stdin(std::process::Stdio::null()).output().unwrap())
}

#[test]
fn ranges_of_ids() {
    let Some(desk) = root_desk() else { return };
    for (text, code, said) in [
        (
            "apptainer config fakeroot --add daemon && cat /etc/subuid",
            0,
            "ada:100000:65536\ndaemon:165536:65536\n",
        ),
        (
            "apptainer config fakeroot --disable daemon && grep daemon /etc/subgid",
            0,
            "!daemon:165536:65536\n",
        ),
        ("apptainer config fakeroot -e daemon && grep daemon /etc/subgid", 0, "daemon:165536:65536\n"),
        (
            "apptainer config fakeroot --remove daemon && cat /etc/subuid /etc/subgid",
            0,
            "ada:100000:65536\nada:100000:65536\n",
        ),
        ("apptainer config fakeroot --remove daemon", 255, ""),
        ("apptainer config fakeroot --add nosuchuser", 255, ""),
        ("apptainer config fakeroot daemon", 1, ""),
        ("ls /etc/*.lock 2> /dev/null | grep sub", 1, ""),
    ] {
        let answer = line(&desk, text);
        assert_eq!((answer.code, answer.out.as_str()), (Some(code), said), "{text}: {}", answer.err);
    }
}

#[test]
fn endpoints_for_everybody() {
    let Some(desk) = root_desk() else { return };
    for (text, word) in [
        ("apptainer remote add --global --no-login site lib.example.org", "\"site\" added"),
        ("grep -c 'URI: lib.example.org' /etc/apptainer/remote.yaml", "1"),
        ("stat -c %a /etc/apptainer /etc/apptainer/remote.yaml", "755\n644"),
        (
            "apptainer remote add --no-login own own.example.org && apptainer remote list | grep own",
            "own.example.org",
        ),
        ("apptainer remote use own && apptainer remote remove site; echo $?", "255"),
        ("apptainer remote use --exclusive site && apptainer remote list | grep site", "✓"),
        ("apptainer remote use own; echo $?", "255"),
        ("apptainer remote use own", "remote site has been set exclusive"),
        ("apptainer remote list -c other.yaml | grep -c own || test ! -e other.yaml && echo none", "none"),
        (
            "apptainer remote add --config other.yaml --no-login third x.example.org; grep third other.yaml",
            "third",
        ),
        ("apptainer remote use --global site && apptainer remote use own && echo free", "free"),
        (
            "apptainer remote remove --global site && apptainer remote list | grep -c site || echo gone",
            "gone",
        ),
        ("apptainer remote login --username me own", "remote login --username is not supported"),
        ("apptainer remote get-login-password", "is not supported"),
    ] {
        let answer = line(&desk, text);
        assert!(format!("{}{}", answer.out, answer.err).contains(word), "{text}: {answer:?}");
    }
}

/// A key server that wants a login, and says what it was asked.
fn key_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap_or_else(|| Ok(String::new())).unwrap_or_default();
            let headers: Vec<String> =
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            // me:secret, and a token.
            let known = ["basic bwu6c2vjcmv0", "bearer token"];
            let login = headers.iter().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("authorization: ").map(str::to_owned)
            });
            let fine = login.is_some_and(|login| known.contains(&login.as_str()));
            let index = "info:1:1\npub:0000000000000000000000000000000000000001:1:2048:1::\nuid:Ada:1::\n";
            let (status, body) = match (fine, first.contains("op=index")) {
                (false, _) => ("401 Unauthorized", "who are you"),
                (true, true) => ("200 OK", index),
                (true, false) => ("200 OK", ""),
            };
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn logins_at_key_servers() {
    let desk = Desk::new(true);
    let server = key_server();
    for (text, code, word) in [
        ("apptainer key search --url SERVER ada", 2, "who are you"),
        ("apptainer keyserver login --username me --password wrong SERVER", 255, "refused to take the login"),
        ("printf secret | apptainer keyserver login --username me --password-stdin SERVER", 0, "stored"),
        ("apptainer key search --url SERVER/ ada", 0, "Ada"),
        ("stat -c %a .apptainer/remote.yaml", 0, "600"),
        ("apptainer keyserver logout SERVER", 0, "Logout succeeded"),
        ("apptainer key search --url SERVER ada", 2, "who are you"),
        ("apptainer keyserver logout SERVER", 255, "is not configured"),
        ("apptainer keyserver login -p token SERVER && apptainer key search --url SERVER ada", 0, "Ada"),
        ("apptainer keyserver list", 0, "keys.openpgp.org"),
    ] {
        let answer = desk.script(&text.replace("SERVER", &server));
        println!("{text}: {answer:?}");
        let fine = (answer.code == Some(0)) == (code == 0);
        assert!(fine && format!("{}{}", answer.out, answer.err).contains(word), "{text}: {answer:?}");
    }
}

/// Only what the machine's list names runs, whoever asks.
#[test]
fn an_execution_control_list_is_obeyed() {
    let Some(desk) = root_desk() else { return };
    desk.busybox(&[]);
    let script = "
        isles save -o b.tar busybox:desk 2> /dev/null
        mkdir free signed
        apptainer build free/b.sif docker-archive:b.tar
        cp free/b.sif signed/b.sif && cp free/b.sif signed/unsigned.sif
        apptainer key newpair --name Ada --email ada@example.org --comment '' --password ''
        apptainer sign signed/b.sif
        apptainer build --sandbox tree free/b.sif
        echo 0 | apptainer key export --armor ada.asc > /dev/null
        apptainer key import --global ada.asc
        fp=$(apptainer key list | sed -n 's/^ *Fingerprint: *//p')
        printf 'activated = true\\n[[execgroup]]\\nmode = \"whitelist\"\\ndirpath = \"%s\"\\nkeyfp = [\"%s\"]\\n' \
            $PWD/signed $fp > /etc/apptainer/ecl.toml
        printf '[[execgroup]]\\nmode = \"blacklist\"\\nkeyfp = [\"%s\"]\\n' $fp >> /etc/apptainer/ecl.toml";
    let made = line(&desk, &format!("set -e; {script}"));
    assert_eq!(made.code, Some(0), "{made:?}");
    for (text, fine) in [
        ("apptainer exec signed/b.sif echo runs", true),
        ("apptainer exec signed/unsigned.sif echo runs", false),
        ("apptainer exec free/b.sif echo runs", true),
        ("cp signed/b.sif free/signed.sif; apptainer exec free/signed.sif echo runs", false),
        (
            "cp signed/b.sif signed/changed.sif; printf x | dd of=signed/changed.sif bs=1 seek=40000 conv=notrunc 2> /dev/null; \
          apptainer exec signed/changed.sif echo runs",
            false,
        ),
        ("ln -s ../signed/unsigned.sif free/link.sif; apptainer exec free/link.sif echo runs", false),
        ("apptainer exec tree echo runs", true),
        ("apptainer run signed/unsigned.sif", false),
        ("apptainer instance start signed/unsigned.sif x", false),
        ("apptainer shell signed/unsigned.sif", false),
        ("cd signed && apptainer exec docker-archive:../b.tar echo runs", true),
        (
            "sed -i s/blacklist/whitelist/ /etc/apptainer/ecl.toml; apptainer exec docker-archive:b.tar echo runs",
            false,
        ),
        ("echo broken > /etc/apptainer/ecl.toml; apptainer exec free/b.sif echo runs", false),
    ] {
        let answer = line(&desk, text);
        let said = if fine { "runs\n" } else { "" };
        assert_eq!((answer.code == Some(0), answer.out.as_str()), (fine, said), "{text}: {}", answer.err);
        assert!(
            fine || answer.err.contains("ECL") || answer.err.contains("ecl.toml"),
            "{text}: {}",
            answer.err
        );
    }
}

#[test]
fn grants_and_settings() {
    let Some(desk) = root_desk() else { return };
    for (text, code, said) in [
        ("apptainer capability list", 255, "no capability set for users or groups"),
        ("apptainer capability add net_raw", 255, "no user or group specified"),
        ("apptainer capability add -u nosuch net_raw", 255, "user nosuch: user does not exist"),
        (
            "apptainer capability add -u daemon -g adm net_raw,CAP_CHOWN,moon",
            0,
            "Ignoring unknown capabilities: MOON",
        ),
        ("apptainer capability add -u daemon net_raw", 0, "have no effect here"),
        (
            "cat /etc/apptainer/capability.json",
            0,
            r#"{"users":{"daemon":["CAP_CHOWN","CAP_NET_RAW"]},"groups":{"adm":["CAP_CHOWN","CAP_NET_RAW"]}}"#,
        ),
        (
            "apptainer capability list",
            0,
            "daemon [user]: CAP_CHOWN,CAP_NET_RAW\nadm [group]: CAP_CHOWN,CAP_NET_RAW\n",
        ),
        ("apptainer caps drop -g adm all", 255, "is not granted"),
        (
            "apptainer caps drop -g adm net_raw,chown && apptainer caps list adm",
            255,
            "no capability set for user/group adm",
        ),
        ("apptainer capability list daemon", 0, "daemon [user]: CAP_CHOWN,CAP_NET_RAW\n"),
        ("apptainer buildcfg APPTAINER_CONFDIR", 0, "/etc/apptainer\n"),
        ("apptainer buildcfg MOON", 1, "no variable named \"MOON\""),
        ("apptainer confgen", 1, "unexpected number of parameters"),
        (
            "apptainer config global --set 'mount tmp' no && apptainer confgen /etc/apptainer/apptainer.conf new.conf && grep '^mount' new.conf",
            0,
            "mount tmp = no\n",
        ),
        (
            "apptainer -c new.conf config global --get 'mount tmp,x'",
            255,
            "not a valid configuration directive",
        ),
        ("apptainer -c new.conf config global --get 'mount tmp'", 0, "no\n"),
    ] {
        let found = line(&desk, text);
        assert_eq!(found.code, Some(code), "{text}: {found:?}");
        assert!(found.out.contains(said) || found.err.contains(said), "{text}: {found:?}");
    }
}

/// What bash offers, asked as readline does.
#[test]
fn completions_of_a_shell() {
    let desk = Desk::new(false);
    for (words, offered) in [
        ("apptainer inst", "instance\n"),
        ("apptainer instance st", "start\nstats\nstop\n"),
        ("apptainer exec --fuse", "--fusemount=\n"),
        ("singularity pul", "pull\n"),
    ] {
        let script = format!(
            "eval \"$(apptainer completion bash)\"; compopt() {{ :; }}; COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _apptainer_complete; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let said = desk.run(&["bash", "-c", &script]);
        assert_eq!(said.fine(), offered, "{words}");
    }
    for shell in ["zsh", "fish"] {
        let text = desk.run(&["apptainer", "completion", shell]).fine();
        assert!(text.contains("__complete"), "{text}");
        let file = desk.path(shell);
        fs::write(&file, text).unwrap();
        // Where there is such a shell, it takes the script.
        match Command::new(shell).arg("-n").arg(&file).status() {
            Ok(status) => assert!(status.success(), "{shell}"),
            Err(_) => println!("skip: {shell} is not installed"),
        }
    }
}
