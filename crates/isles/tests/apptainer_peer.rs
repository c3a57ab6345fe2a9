//! The real Apptainer beside ours: the same command lines in the same home.
//!
//! Exit codes and standard output are compared as they are, messages by their kind: their words are our own. What
//! differs on purpose stands in the tables, with the reason.
#![allow(clippy::unwrap_used)]

mod desk;
mod peers;

use desk::{REAL, Said};
use peers::{Peers, kinds};

impl Peers {
    /// Runs a table with one program, then with the other, and compares.
    fn compare(&self, rows: &[Row]) {
        let real: Vec<Said> = rows.iter().map(|row| self.real(row.line)).collect();
        let ours: Vec<Said> = rows.iter().map(|row| self.ours(row.line)).collect();
        let mut differences = String::new();
        for (row, (real, ours)) in rows.iter().zip(real.iter().zip(&ours)) {
            let mut what = Vec::new();
            let is = |exempt: &[Aspect]| exempt.iter().any(|aspect| row.except.contains(aspect));
            if real.code != ours.code && !is(&[Aspect::Code]) {
                what.push("the exit code");
            }
            // Usage that follows an error is talk: ours stands on standard error, beside it.
            let usage = ["Usage:", "Options for "].iter().any(|start| real.out.starts_with(start));
            if real.out != ours.out
                && !(usage && real.code != Some(0))
                && !is(&[Aspect::Code, Aspect::Output])
            {
                what.push("the output");
            }
            if kinds(&real.err) != kinds(&ours.err) && !is(&[Aspect::Code, Aspect::Messages]) {
                what.push("the messages");
            }
            if !what.is_empty() {
                let what = what.join(" and ");
                differences.push_str(&format!(
                    "\n=== {what} of: {}\n--- real {real:?}\n--- ours {ours:?}\n",
                    row.line
                ));
            }
        }
        assert!(differences.is_empty(), "{differences}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    /// And all that depends on whether it works.
    Code,
    Output,
    Messages,
}
use Aspect::{Code, Messages, Output};

/// A command line, and what of it need not be the same.
struct Row {
    line: &'static str,
    except: &'static [Aspect],
}

const fn same(line: &'static str) -> Row {
    Row { line, except: &[] }
}

/// The last word is why.
const fn but(line: &'static str, except: &'static [Aspect], _why: &'static str) -> Row {
    Row { line, except }
}

const ACTIONS: &[Row] = &[
    same("apptainer exec real.sif true"),
    same("apptainer exec real.sif false"),
    same("apptainer exec real.sif sh -c 'exit 7'"),
    same("apptainer exec real.sif sh -c 'kill -TERM $$'"),
    same("apptainer exec real.sif sh -c 'kill -KILL $$'"),
    same("apptainer exec real.sif nothere"),
    same("apptainer exec real.sif /etc/passwd"),
    same("apptainer exec real.sif /nowhere/x"),
    same("apptainer exec real.sif"),
    same("apptainer exec"),
    same("apptainer exec none.sif true"),
    same("apptainer exec note true"),
    same("apptainer exec tree cat /etc/passwd"),
    same("apptainer exec $PWD/tree true"),
    same("apptainer exec ours.sif cat /etc/group /opt/note"),
    same("apptainer run real.sif a 'b c'"),
    same("apptainer run ours.sif a 'b c'"),
    same("./real.sif x 2> /dev/null || apptainer run real.sif x"),
    same("apptainer run --app foo real.sif x"),
    same("apptainer run --app foo ours.sif x"),
    same("apptainer run --app nope real.sif x"),
    same("apptainer run tree < /dev/null"),
    same("apptainer exec --app foo real.sif sh -c 'echo $SCIF_APPNAME $FOO_ENV; pwd'"),
    same("apptainer shell real.sif < /dev/null"),
    same("echo 'echo in $0; exit 3' | apptainer shell real.sif"),
    same("apptainer shell real.sif -c 'echo ignored'"),
    same("echo 'echo in; exit 3' | apptainer shell --shell /bin/sh real.sif"),
    same("echo 'echo in' | apptainer shell --shell /bin/nope real.sif"),
    same("echo 'echo in' | APPTAINER_SHELL=/bin/sh apptainer shell real.sif"),
    same("echo 'cat note' | apptainer exec real.sif sh"),
    same("apptainer test real.sif"),
    same("apptainer test ours.sif x y"),
    same("apptainer test --app foo real.sif"),
    same("apptainer run-help real.sif"),
    same("apptainer run-help --app foo ours.sif"),
    same("apptainer run-help note"),
    same("apptainer exec --nope real.sif true"),
    same("apptainer exec -Z real.sif true"),
    same("apptainer exec --vm real.sif true"),
    same("apptainer exec --bind"),
    same("apptainer run --nope"),
    same("apptainer nope"),
    same("apptainer --nope"),
    same("apptainer instance"),
    same("apptainer key"),
    same("apptainer -s exec -B nowhere:/mnt real.sif true"),
    same("apptainer -q exec -B nowhere:/mnt real.sif true"),
    same("apptainer -q exec none.sif true"),
    same("apptainer -s exec none.sif true"),
    same("APPTAINER_SILENT=1 apptainer exec real.sif true"),
    same("apptainer exec docker:// true"),
    same("apptainer exec foo://x true"),
    same("apptainer exec oci:none true"),
    same("apptainer exec oci-archive:none.tar true"),
    same("apptainer exec instance://none true"),
    but(
        "apptainer exec docker://127.0.0.1:1/none true",
        &[Messages],
        "ours says what it does before it fails",
    ),
    same("apptainer version"),
    same("apptainer --version"),
    same("apptainer version x"),
    but("apptainer help nope", &[Code], "the real one says that there is no such topic, and succeeds"),
    but("apptainer sif nope", &[Code], "the real one shows the help, and succeeds"),
];

/// A shell of ours reads the image's scripts, and counts itself in SHLVL.
const VARIABLES: &[Row] = &[
    same("apptainer exec real.sif sh -c 'env | cut -d= -f1 | sort'"),
    same("apptainer exec -e real.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer exec -e ours.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer exec -C real.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer exec --app foo real.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer run --app foo real.sif"),
    same("apptainer exec real.sif sh -c 'echo ${USER_PATH#*:/sbin:/bin:}'"),
    same("apptainer exec --env A=1,B=2 real.sif sh -c 'echo $A $B'"),
    same("apptainer exec --env A='x y' --env B='$HOME' real.sif sh -c 'echo $A $B'"),
    same("apptainer exec --env 'A=a,b' real.sif sh -c 'echo \"$A\"'"),
    same("apptainer exec --env A real.sif true"),
    same("apptainer exec --env-file vars real.sif sh -c 'echo \"$A|$B|$C|$D\"'"),
    same("apptainer exec --env-file vars --env A=flag real.sif sh -c 'echo \"$A|$B\"'"),
    same("apptainer exec --env-file plain --env A=flag real.sif sh -c 'echo \"$A|$E\"'"),
    same("APPTAINERENV_D=5 apptainer exec --env-file vars real.sif sh -c 'echo $D'"),
    same("APPTAINERENV_E=5 apptainer exec --env-file plain real.sif sh -c 'echo $E'"),
    same("apptainer exec --env-file none real.sif true"),
    same("apptainer exec --env LD_LIBRARY_PATH=/x real.sif sh -c 'echo $LD_LIBRARY_PATH'"),
    same("apptainer exec --env PATH=/x:/bin real.sif sh -c 'echo $PATH'"),
    same("apptainer exec --env PREPEND_PATH=/x real.sif sh -c 'echo $PATH'"),
    same("apptainer exec real.sif sh -c 'echo $PATH $LD_LIBRARY_PATH $PS1'"),
    same("A=host apptainer exec real.sif sh -c 'echo $A'"),
    same("A=host apptainer exec -e real.sif sh -c 'echo $A'"),
    same("A='a`b\"c$d' apptainer exec real.sif sh -c 'echo \"$A\"'"),
    same("APPTAINERENV_A=1 apptainer exec -e real.sif sh -c 'echo $A'"),
    same("SINGULARITYENV_A=1 apptainer exec -e real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 SINGULARITYENV_A=2 apptainer exec real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 SINGULARITYENV_A=1 apptainer exec real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 apptainer exec --env A=2 real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 apptainer exec --env-file vars real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A='$(echo sub)' apptainer exec real.sif sh -c 'echo \"$A\"'"),
    same("APPTAINERENV_A='$(echo sub)' apptainer exec --no-eval real.sif sh -c 'echo \"$A\"'"),
    but(
        "APPTAINERENV_A='a`b' apptainer exec real.sif sh -c 'echo \"$A\"'",
        &[Code],
        "the real one leaves the variable out; ours says that it is broken, and stops",
    ),
    same("APPTAINERENV_PREPEND_PATH=/p apptainer exec real.sif sh -c 'echo $PATH'"),
    same("APPTAINERENV_APPEND_PATH=/p apptainer exec real.sif sh -c 'echo $PATH'"),
    same("APPTAINERENV_PATH=/p:/bin apptainer exec real.sif sh -c 'echo $PATH'"),
    same("APPTAINERENV_HOME=/x apptainer exec real.sif sh -c 'echo $HOME'"),
    same("APPTAINERENV_LD_LIBRARY_PATH=/l apptainer exec real.sif sh -c 'echo $LD_LIBRARY_PATH'"),
    same("LD_LIBRARY_PATH=/l apptainer exec real.sif sh -c 'echo $LD_LIBRARY_PATH'"),
    same("APPTAINERENV_FROM_ENV=x apptainer exec real.sif sh -c 'echo $FROM_ENV $OTHER'"),
    same("FROM_ENV=x apptainer exec real.sif sh -c 'echo $FROM_ENV'"),
    same("FROM_ENV=x apptainer exec --no-eval real.sif sh -c 'echo $FROM_ENV'"),
    same("APPTAINER_BIND=note:/mnt/note apptainer exec real.sif cat /mnt/note"),
    same("APPTAINER_BINDPATH=note:/mnt/note apptainer exec real.sif cat /mnt/note"),
    same("SINGULARITY_BIND=note:/mnt/note apptainer exec real.sif cat /mnt/note"),
    same("APPTAINER_BIND=note:/mnt/a SINGULARITY_BIND=note:/mnt/b apptainer exec real.sif ls /mnt"),
    same("APPTAINER_CONTAIN=1 apptainer exec real.sif ls /tmp"),
    same("APPTAINER_CLEANENV=yes apptainer exec real.sif true"),
    same("APPTAINER_CLEANENV=1 A=1 apptainer exec real.sif sh -c 'echo ?$A'"),
    same("SINGULARITY_CLEANENV=1 A=1 apptainer exec real.sif sh -c 'echo ?$A'"),
    same("APPTAINER_NO_HOME=1 apptainer exec real.sif sh -c 'test -e $HOME/note'"),
    same("APPTAINER_PWD=/usr apptainer exec real.sif pwd"),
    same("APPTAINER_CWD=/usr apptainer exec real.sif pwd"),
    same("SINGULARITY_PWD=/usr apptainer exec real.sif pwd"),
    same("APPTAINER_WRITABLE_TMPFS=true apptainer exec real.sif touch /new"),
];

const PLACES: &[Row] = &[
    same("apptainer exec real.sif sh -c 'pwd; id; echo $HOME; cat /etc/passwd /etc/group'"),
    same("apptainer exec -B note:/mnt/note real.sif cat /mnt/note"),
    same("apptainer exec -B note:/mnt/note:ro real.sif sh -c 'echo x > /mnt/note'"),
    same("apptainer exec -B note:/mnt/note:rw real.sif test -w /mnt/note"),
    same("apptainer exec -B note:/mnt/note:foo real.sif true"),
    same("apptainer exec -B note:/mnt/a,vars:/mnt/b real.sif cat /mnt/a /mnt/b"),
    same("apptainer exec -B note:/mnt/a:ro,vars:/mnt/b:rw real.sif cat /mnt/a /mnt/b"),
    same("apptainer exec -B /usr/share real.sif test -d /usr/share"),
    same("apptainer exec -B nowhere:/mnt real.sif true"),
    same("apptainer exec -B note: real.sif true"),
    same("apptainer exec -B note:/mnt/x: real.sif true"),
    same("apptainer exec -B note::ro real.sif true"),
    same("apptainer exec -B :/mnt real.sif true"),
    same("apptainer exec -B '' real.sif true"),
    same("apptainer exec -B note:mnt real.sif true"),
    same("apptainer exec -B a:b:c:d real.sif true"),
    but("apptainer exec -B other real.sif true", &[Code], "ours takes the absolute path for the place, too"),
    same("apptainer exec -B other:/opt real.sif ls /opt"),
    same("apptainer exec -B 'with\\:colon:/mnt/c' real.sif cat /mnt/c"),
    same("apptainer exec -B note:/bin/new real.sif cat /bin/new"),
    same("apptainer exec -B note:/etc/passwd real.sif cat /etc/passwd"),
    same("apptainer exec --mount type=bind,source=note,destination=/mnt/note real.sif cat /mnt/note"),
    same("apptainer exec --mount type=bind,src=note,dst=/mnt/note,ro real.sif sh -c 'echo x > /mnt/note'"),
    same("apptainer exec --mount type=bind,src=note,target=/mnt/note real.sif cat /mnt/note"),
    same("apptainer exec --mount type=tmpfs,dst=/mnt real.sif true"),
    same("apptainer exec --mount src=note real.sif true"),
    same("apptainer exec --mount src=note,dst=mnt real.sif true"),
    same("apptainer exec --mount type=bind,src=note,dst=/m,zzz real.sif true"),
    same("apptainer exec --mount type=bind,src=nowhere,dst=/m real.sif true"),
    same("apptainer exec --mount '\"type=bind\",\"src=note\",\"dst=/m,x\"' real.sif cat /m,x"),
    same("apptainer exec --no-home real.sif sh -c 'echo $HOME; pwd'"),
    same("apptainer exec --home $PWD/other real.sif sh -c 'echo $HOME; ls $HOME; pwd'"),
    same("apptainer exec --home other:/srv real.sif sh -c 'echo $HOME; ls $HOME; pwd'"),
    same("apptainer exec -H /nowhere real.sif sh -c 'echo $HOME; pwd'"),
    same("apptainer exec --home x:y real.sif true"),
    same("apptainer exec --home /a:/b:/c real.sif true"),
    same("apptainer exec -c real.sif sh -c 'echo $HOME; ls ~; pwd; test -e ~/note'"),
    but("apptainer exec -c real.sif ls /dev", &[Output], "ours has full and mqueue besides"),
    same("apptainer exec -C real.sif sh -c 'echo $HOME; ls ~; pwd'"),
    same("apptainer exec --contain --home $PWD/other real.sif sh -c 'ls ~; pwd'"),
    same("apptainer exec -c -W work real.sif sh -c 'touch /tmp/a /var/tmp/b ~/c; ls ~'"),
    same("apptainer exec -c -W work real.sif ls /tmp /var/tmp"),
    same("apptainer exec -c -W nowhere real.sif true"),
    same("apptainer exec -W nowhere real.sif true"),
    same("apptainer exec -S /scratch real.sif sh -c 'touch /scratch/x && ls /scratch'"),
    same("apptainer exec -S /a,/b real.sif ls -d /a /b"),
    same("apptainer exec -S /scratch -W work real.sif sh -c 'touch /scratch/x; ls /scratch'"),
    same("apptainer exec -S relative real.sif true"),
    same("apptainer exec --pwd /usr real.sif pwd"),
    same("apptainer exec --cwd /usr real.sif pwd"),
    same("apptainer exec --pwd /nowhere real.sif pwd"),
    same("apptainer exec --cwd usr real.sif pwd"),
    same("apptainer exec --pwd note real.sif pwd"),
    same("apptainer exec --pwd '' real.sif pwd"),
    same("apptainer exec -c --pwd $PWD real.sif pwd"),
    same("apptainer exec --writable-tmpfs real.sif sh -c 'echo x > /new && cat /new'"),
    same("apptainer exec --writable-tmpfs tree sh -c 'echo x > /q; cat /q'"),
    same("apptainer exec real.sif sh -c 'echo x > /new'"),
    same("apptainer exec tree sh -c 'echo x > /new'"),
    same("apptainer exec -w real.sif true"),
    same("apptainer exec -w tree sh -c 'echo x > /new && cat /new; rm /new'"),
    same("apptainer exec -w --writable-tmpfs tree true"),
    but(
        "cp -r tree t; apptainer exec -w -B note:/mnt/n t cat /mnt/n; rm -r t",
        &[Output, Messages],
        "ours makes the place",
    ),
    same("apptainer exec --overlay over real.sif cat /x"),
    same("apptainer exec --overlay over real.sif sh -c 'echo y > /y && cat /y'"),
    same("apptainer exec --overlay over:ro real.sif sh -c 'cat /x; echo y > /z'"),
    same("apptainer exec --overlay nowhere real.sif true"),
    same("apptainer exec --overlay note real.sif true"),
    same("apptainer exec --writable-tmpfs --overlay over real.sif true"),
    same("apptainer exec --no-mount tmp real.sif ls /tmp"),
    same("apptainer exec --no-mount home,cwd,tmp real.sif sh -c 'pwd; ls /tmp'"),
    but(
        "apptainer exec --no-mount proc real.sif ls /proc",
        &[Messages],
        "the real one misses its own program",
    ),
    same("apptainer exec --no-mount sys real.sif ls /sys"),
    same("apptainer exec --no-mount dev real.sif ls /dev"),
    same("apptainer exec --no-mount cwd real.sif pwd"),
    same("apptainer exec --no-mount bind-paths real.sif test -e /etc/localtime"),
    same("apptainer exec --no-mount /etc/hosts real.sif cat /etc/hosts"),
    same("apptainer exec --no-mount zzz real.sif true"),
    same("apptainer exec --no-mount hostfs,devpts real.sif true"),
];

const ISOLATION: &[Row] = &[
    same("apptainer exec --pid real.sif sh -c 'test -d /proc/1 && test $$ -lt 100'"),
    same("apptainer exec --pid --no-init real.sif true"),
    same("apptainer exec --ipc real.sif true"),
    same("apptainer exec --uts --hostname isle real.sif hostname"),
    same("apptainer exec --hostname isle real.sif hostname"),
    same("apptainer exec --uts real.sif hostname"),
    same("apptainer exec --userns real.sif id -u"),
    same("apptainer exec --net --network none real.sif cat /proc/net/dev"),
    same("apptainer exec --net --network nope real.sif true"),
    same("apptainer exec --network none real.sif true"),
    // -n alone is refused to users by the real one, and given a network here (apptainer_network).
    same("apptainer exec -f real.sif id"),
    same("apptainer exec --fakeroot real.sif sh -c 'echo $HOME; pwd; cat /etc/passwd'"),
    same("apptainer exec --fakeroot real.sif sh -c 'touch ~/ff; stat -c %u ~/ff; rm ~/ff'"),
    same("apptainer exec --fakeroot -c real.sif sh -c 'echo $HOME; pwd; ls -a ~'"),
    same("apptainer exec -f --writable-tmpfs real.sif sh -c 'touch /n && chown 5:5 /n && stat -c %u:%g /n'"),
    same("apptainer exec -f -w tree sh -c 'touch /n && chown 7:7 /n; stat -c %u /n; rm /n'"),
    same("apptainer exec --compat real.sif sh -c 'pwd; ls ~; echo x > /new; cat /new'"),
    same("apptainer exec --dns 1.2.3.4 real.sif cat /etc/resolv.conf"),
    same("apptainer exec --security uid:1 real.sif true"),
    same("apptainer exec --add-caps CAP_NET_RAW real.sif true"),
    same("apptainer exec --add-caps net_raw,CAP_NOPE,bar real.sif true"),
    same("apptainer exec --drop-caps nope real.sif true"),
    same("apptainer exec --drop-caps CAP_NET_RAW real.sif true"),
    same("apptainer exec --keep-privs real.sif true"),
    same("apptainer exec --no-privs real.sif true"),
    same("apptainer exec --underlay -B note:/mnt/n real.sif cat /mnt/n"),
    same("apptainer exec --unsquash real.sif true"),
    same("umask 027; apptainer exec real.sif sh -c umask"),
    same("umask 027; apptainer exec --no-umask real.sif sh -c umask"),
    same("apptainer exec --cpus x real.sif true"),
    same("apptainer exec --memory x real.sif true"),
    same("apptainer exec --apply-cgroups none real.sif true"),
    same("apptainer exec --fusemount x real.sif true"),
    same("apptainer exec --netns-path /x real.sif true"),
    but("apptainer exec --device x real.sif true", &[Code], "a flag of later releases"),
    but(
        "apptainer exec --nv real.sif true",
        &[Messages],
        "the real one takes libraries of other drivers for NVIDIA's",
    ),
];

const MANAGEMENT: &[Row] = &[
    same("apptainer inspect none.sif"),
    same("apptainer inspect note"),
    same("apptainer inspect tree"),
    same("apptainer inspect"),
    same("apptainer inspect -r tree"),
    same("apptainer inspect -d tree"),
    same("apptainer inspect --app nope real.sif"),
    same("apptainer inspect --nope real.sif"),
    same("apptainer inspect --list-apps tree"),
    same("apptainer sif list"),
    same("apptainer sif list none.sif"),
    same("apptainer sif list note"),
    same("apptainer sif info 99 real.sif"),
    same("apptainer sif info x real.sif"),
    same("apptainer sif dump 99 real.sif"),
    same("apptainer sif header tree"),
    same("apptainer sif del 99 real.sif"),
    same("apptainer sif add real.sif"),
    same("apptainer sif setprim 1 real.sif"),
    same("apptainer sif new"),
    same("apptainer verify none.sif"),
    same("apptainer verify note"),
    same("apptainer verify tree"),
    same("apptainer verify -i 99 real.sif"),
    same("apptainer verify -g 9 real.sif"),
    same("apptainer verify --all real.sif"),
    same("apptainer verify --key none.pem real.sif"),
    same("apptainer sign none.sif"),
    same("apptainer sign note"),
    same("apptainer sign --key none.pem real.sif"),
    same("apptainer key list"),
    same("apptainer key export nope.asc"),
    same("apptainer key import none.asc"),
    same("apptainer key newpair --nope"),
    same("apptainer cache list --nope"),
    same("apptainer pull"),
    same("apptainer pull foo://x"),
    same("apptainer build"),
    same("apptainer build x.sif"),
    same("apptainer build x.sif none.def"),
    same("apptainer build --nope x.sif x.def"),
    same("apptainer build nodir/x.sif tree 2> /dev/null"),
    // What a build says as it goes is each program's own, and the output of scripts is talk of ours.
    same("apptainer build -F f.sif wrong.def 2> /dev/null"),
    same("apptainer build -F f.sif fails.def > /dev/null 2>&1"),
    same("apptainer build -F f.sif failing-test.def > /dev/null 2>&1"),
    same("apptainer build -F --notest f.sif failing-test.def > /dev/null 2>&1"),
    same("apptainer build -F f.sif lacking.def > /dev/null 2>&1"),
    same("apptainer build -F f.sif arguments.def 2> /dev/null && apptainer run f.sif"),
    same("apptainer build -F --build-arg V=2 f.sif arguments.def 2> /dev/null && apptainer run f.sif"),
    same(
        "apptainer build -F --build-arg-file values f.sif arguments.def 2> /dev/null && apptainer run f.sif",
    ),
    same("apptainer build -F --build-arg W=2 f.sif arguments.def > /dev/null 2>&1"),
    same(
        "apptainer build -F f.sif stages.def > /dev/null 2>&1 && apptainer run f.sif a && apptainer inspect -d f.sif",
    ),
    same("apptainer push real.sif"),
    same("apptainer push real.sif foo://x"),
    same("apptainer overlay create"),
    same("apptainer overlay"),
    same("apptainer cache"),
    same("apptainer plugin list"),
    same("apptainer registry list"),
];

const INSTANCES: &[Row] = &[
    same("apptainer instance list"),
    same("apptainer instance list -j"),
    same("apptainer instance list nope"),
    same("apptainer instance list --nope"),
    same("apptainer instance start real.sif"),
    same("apptainer instance start real.sif bad/name"),
    same("apptainer instance start none.sif i1"),
    same("apptainer instance start real.sif i1"),
    same("apptainer instance start real.sif i1"),
    // How wide the column is depends on how many digits the process ID happens to have.
    same("apptainer instance list | sed 's/ [0-9][0-9]* / N /; s/PID  */PID /'"),
    same("apptainer exec instance://i1 true"),
    same("apptainer exec instance://i1 sh -c 'echo $APPTAINER_NAME; pwd; exit 4'"),
    same("apptainer run instance://i1 arg"),
    same("echo 'echo in' | apptainer shell instance://i1"),
    same("apptainer exec --env A=5 instance://i1 sh -c 'echo $A'"),
    same("apptainer instance stats nope"),
    same("apptainer instance stop nope"),
    same("apptainer instance stop i1 2> /dev/null"),
    same("apptainer instance stop i1"),
    same("apptainer instance stop -a"),
    same("apptainer instance stop"),
    same("apptainer instance run real.sif i2 x"),
    same("apptainer instance stop --signal NOPE i2"),
    same("apptainer instance start --app foo ours.sif i3"),
    same("apptainer instance stop -s KILL i3"),
    same("apptainer instance stop -a 2> /dev/null; apptainer instance list"),
    same("apptainer instance nope"),
];

#[test]
fn actions_and_how_they_end() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(ACTIONS);
    // Whoever starts it without a shell sees the signal itself.
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10)] {
        for program in [format!("{REAL}/apptainer"), "apptainer".to_owned()] {
            let script = format!("kill -{signal} $$");
            let words = [program.as_str(), "exec", "real.sif", "sh", "-c", &script];
            let status = peers.0.command(&words).output().unwrap().status;
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(number), "{words:?}");
        }
    }
}

#[test]
fn variables_into_the_container() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(VARIABLES);
}

#[test]
fn binds_homes_and_layers() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(PLACES);
}

#[test]
fn what_is_set_apart() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(ISOLATION);
}

#[test]
fn files_keys_and_caches() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(MANAGEMENT);
}

#[test]
fn instances_from_start_to_stop() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(INSTANCES);
}

/// The commands of the real one below these words, with all that are below them.
fn commands_of(peers: &Peers, words: &str, out: &mut Vec<String>) {
    let help = peers.real(&format!("apptainer help {words}")).out;
    let list = help.lines().skip_while(|line| !line.starts_with("Available Commands:")).skip(1);
    for line in list.take_while(|line| !line.is_empty()) {
        let name = line.split_whitespace().next().unwrap_or_default();
        if name != "help" {
            let command = format!("{words} {name}").trim().to_owned();
            out.push(command.clone());
            commands_of(peers, &command, out);
        }
    }
}

/// Every flag of every command of the real one is understood, or the command says what it does not do.
#[test]
fn all_flags_of_the_real_one_are_known() {
    let Some(peers) = Peers::new() else { return };
    let mut commands = Vec::new();
    commands_of(&peers, "", &mut commands);
    assert!(commands.len() > 90, "{commands:?}");
    let (mut count, mut unknown) = (0, Vec::new());
    for command in &commands {
        let help = peers.real(&format!("apptainer help {command}")).out;
        let options = help.lines().skip_while(|line| !line.starts_with("Options:")).skip(1);
        // What continues a description stands further to the right.
        let flags = options.take_while(|line| !line.is_empty()).filter_map(|line| {
            let begins = !line.starts_with("         ");
            line.split_whitespace().take(2).find(|word| begins && word.starts_with("--"))
        });
        let flags: Vec<&str> = flags.filter(|flag| *flag != "--help").collect();
        count += flags.len();
        let script = format!(
            "for flag in {}; do apptainer {command} $flag=1 --help 2>&1 > /dev/null | grep -e 'unknown flag' -e \
             'unknown command'; done; true",
            flags.join(" ")
        );
        unknown.extend(peers.ours(&script).out.lines().map(|line| format!("{command}: {line}")));
        let said = peers.ours(&format!("apptainer {command} --help"));
        let refused = said.code == Some(255) && said.err.contains("is not supported");
        assert!(said.code == Some(0) || refused, "{command}: {said:?}");
    }
    assert!(count > 350, "{count}");
    assert!(unknown.is_empty(), "{unknown:#?}");
}
