"""Tables 1 and 2: every system that the paper accelerates, without and with the cache."""

ID = "tables-1-2"
TITLE = "Tables 1 and 2: every system without and with the cache"
