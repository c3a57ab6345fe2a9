//! A headless Chromium that looks at pages without running what is in them, spoken to over a pipe.
//!
//! The Chrome DevTools Protocol: a JSON object with a number goes in, one with the same number comes out, each ended by a
//! zero byte; events come in between.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    profile: tempfile::TempDir,
    session: Option<String>,
    sent: u64,
    /// What the browser itself complained of.
    pub complaints: Vec<String>,
}

impl Browser {
    /// None, with a word on why, where there is none.
    pub fn start() -> Option<Browser> {
        if let Err(e) = Command::new("chromium").arg("--version").output() {
            println!("skip: chromium: {e}");
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // The pipe's ends are descriptors 3 and 4. Its own sandbox is not for root, and the pages are ours.
        let script = "exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                      --disable-extensions --disable-background-networking --remote-debugging-pipe \
                      --user-data-dir=\"$0\" about:blank 3<&0 4>&1 </dev/null >/dev/null 2>\"$0/log\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(profile.path()).env("HOME", profile.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser =
            Browser { child, to, from, profile, session: None, sent: 0, complaints: Vec::new() };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser.ask("Page.enable", json!({}));
        browser.ask("Log.enable", json!({}));
        browser.ask("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
        browser.size(1200, 900);
        Some(browser)
    }

    fn send(&mut self, method: &str, params: Value) -> u64 {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        self.sent
    }

    /// The next message that is not a complaint.
    fn receive(&mut self) -> Value {
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).unwrap();
            let log = || std::fs::read_to_string(self.profile.path().join("log")).unwrap_or_default();
            assert_eq!(bytes.pop(), Some(0), "the browser ended: {}", log());
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["method"] != "Log.entryAdded" {
                return message;
            }
            self.complaints.push(message["params"]["entry"]["text"].as_str().unwrap_or_default().to_owned());
        }
    }

    #[track_caller]
    fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params);
        loop {
            let mut message = self.receive();
            if message["id"] == id {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].take();
            }
        }
    }

    /// Does what leads to another page, and waits until that is there.
    #[track_caller]
    fn leave(&mut self, method: &str, params: Value) {
        let id = self.send(method, params);
        let (mut answered, mut loaded) = (false, false);
        while !(answered && loaded) {
            let message = self.receive();
            assert_eq!(message["error"], Value::Null, "{method}");
            answered |= message["id"] == id;
            loaded |= message["method"] == "Page.loadEventFired";
        }
    }

    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.leave("Page.navigate", json!({ "url": url }));
    }

    /// Follows the link with this text.
    #[track_caller]
    pub fn follow(&mut self, text: &str) {
        let find = format!("[...document.links].find(a => a.textContent === {})", json!(text));
        assert_eq!(self.value(&format!("!!{find}")), true, "there is no link '{text}'");
        self.leave("Runtime.evaluate", json!({ "expression": format!("{find}.click()") }));
    }

    /// What an expression of JavaScript says of the page.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let mut said = self.ask("Runtime.evaluate", params);
        assert_eq!(said["exceptionDetails"], Value::Null, "{expression}");
        said["result"]["value"].take()
    }

    /// The text of all elements that a selector finds, as it is seen.
    #[track_caller]
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let list =
            format!("[...document.querySelectorAll({})].map(e => e.innerText.trim())", json!(selector));
        serde_json::from_value(self.value(&list)).unwrap()
    }

    pub fn size(&mut self, width: u32, height: u32) {
        let params =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", params);
    }

    pub fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let params = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.ask("Emulation.setEmulatedMedia", params);
    }

    /// Keeps a picture of the page in the folder that `ISLES_SCREENSHOTS` names, for whoever wants to look.
    pub fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("ISLES_SCREENSHOTS") else { return };
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.ask("Page.captureScreenshot", params);
        let file = std::path::Path::new(&folder).join(format!("{name}.png"));
        let mut decode = Command::new("base64");
        decode.arg("-d").stdin(Stdio::piped()).stdout(std::fs::File::create(file).unwrap());
        let mut decode = decode.spawn().unwrap();
        decode.stdin.take().unwrap().write_all(shot["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends all that it has started.
        let _ = self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
