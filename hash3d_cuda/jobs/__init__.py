"""Many objects on many workers: a file of jobs, claims on a shared folder, one table at the end."""

from .claims import Claim, ClaimLost, Ledger, Status
from .files import BadJobs, Job, read_jobs
from .summary import summarise, table_text, write_summary
from .worker import work

__all__ = [
    "BadJobs", "Claim", "ClaimLost", "Job", "Ledger", "Status", "read_jobs", "summarise", "table_text", "work",
    "write_summary",
]  # fmt: skip
