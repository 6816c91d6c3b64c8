"""Reports of a run: plain records in, `report.json` and a self-contained `report.html` out.

Report, Variant, Gain    the records
write_json, read_json    report.json
write_html               report.html
table_text               the table for a terminal
"""

from kdopt.reports.html import write_html
from kdopt.reports.record import Gain, Report, Variant, read_json, write_json
from kdopt.reports.text import table_text

__all__ = ["Gain", "Report", "Variant", "read_json", "table_text", "write_html", "write_json"]
