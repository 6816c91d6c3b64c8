"""A headless Chromium, told what to do through two pipes; see https://chromedevtools.github.io/devtools-protocol/."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",  # commands are read from descriptor 3, answers are written to descriptor 4
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",  # it is small in containers
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # a page under test calls nobody
)


class Chromium:
    """A browser of its own profile, ended by `with`.

    Args:
        flags: More of its command line.
    """

    def __init__(self, *flags):
        import fcntl  # Unix alone has it

        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        (reads, self._out), (self._in, writes) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (reads, writes)]  # not 3 or 4, which bash sets
        line = f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        command = ["bash", "-c", line, PROGRAM, *FLAGS, f"--user-data-dir={self._profile.name}", *flags, "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=theirs, **quiet)
        for one in (reads, writes, *theirs):
            os.close(one)
        self._read, self._count = b"", 0
        self.events = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close", seconds=10)
            self._process.wait(20)
        except (TimeoutError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._out)
            os.close(self._in)
            self._profile.cleanup()

    def call(self, method, session=None, seconds=60, **parameters):
        """The answer to one command; what the browser tells meanwhile goes to `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while (answer := self._message(end, method)).get("id") != self._count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _message(self, end, method):
        while b"\0" not in self._read:
            if not select.select([self._in], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium did not answer {method}; the page told:\n{self.console()}")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise OSError("Chromium ended.")
            self._read += part
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)

    def value(self, url, expression, seconds=60):
        """Opens a page and returns what `expression`, or its promise, becomes once it is not null there.

        Raises: TimeoutError, or RuntimeError for an exception, with what the page wrote on its console.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable", session)
        self.call("Page.navigate", session, url=url)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ready = f"document.readyState === 'complete' ? ({expression}) : null"
            asked = {"expression": ready, "awaitPromise": True, "returnByValue": True}
            said = self.call("Runtime.evaluate", session, max(1, end - time.monotonic()), **asked)
            if "exceptionDetails" in said:
                raise RuntimeError(f"{url}: {said['exceptionDetails']}; the page told:\n{self.console()}")
            value = said["result"].get("value")
            if value is not None:
                self.call("Target.closeTarget", targetId=target)
                return value
            time.sleep(0.1)
        raise TimeoutError(f"{url}: {expression} is {said}; the page told:\n{self.console()}")

    def console(self):
        """What the page wrote on its console, and its errors."""
        lines = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.consoleAPICalled":
                lines.append(" ".join(str(one.get("value", one.get("description"))) for one in parameters["args"]))
            elif event.get("method") == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                lines.append(details.get("exception", {}).get("description", details["text"]))
            elif event.get("method") == "Log.entryAdded":
                lines.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        return "\n".join(lines)
