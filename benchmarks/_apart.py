"""Records that a process of its own prints, one JSON object a line: whatever ends it, the caller goes on."""

import json
import subprocess
import sys


def records_of(script, arguments, minutes):
    """The records that `python script arguments` printed; why it did not end well, or None.

    Args:
        script: Path.
        arguments: Strings.
        minutes: After which the process is ended.
    """
    command = [sys.executable, script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, errors = process.communicate(timeout=60 * minutes)
            why = f"ended with {process.returncode}: {(errors.strip().splitlines() or ['no message'])[-1]}"
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            why = f"not done in {minutes} minutes"
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return records, why if process.returncode or not records else None
