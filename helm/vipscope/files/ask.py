"""Ask exporters whether all is read, and for their metrics: ask.py SCHEME PORT HOST...

Exit status 0: all answered.
"""

import ssl
import sys
import urllib.error
import urllib.request

# The certificate is made for those who scrape; here it does not matter whose it is.
CONTEXT = ssl._create_unverified_context()
EXPECTED = {"/readyz": {200}, "/metrics": {200, 401}}
"""Metrics that are guarded are there, too."""


def status(url: str) -> object:
    """The status of the answer, or why there is none."""
    try:
        with urllib.request.urlopen(url, timeout=10, context=CONTEXT) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return error


scheme, port, *hosts = sys.argv[1:]
failed = False
for host in hosts:
    for path, expected in EXPECTED.items():
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"
        found = status(url)
        print(url, found)
        failed = failed or found not in expected
sys.exit(failed)
