"""What a site's operators see, sign and can refuse; nothing here trains or sends."""

from secfed.governance.approvals import Approval, Withdrawal
from secfed.governance.consent import SiteApprovals, consent_of, standing
from secfed.governance.differences import differences
from secfed.governance.outlay import Outlay, outlay
from secfed.governance.study_manifest import StudyManifest

__all__ = [
    "Approval",
    "Outlay",
    "SiteApprovals",
    "StudyManifest",
    "Withdrawal",
    "consent_of",
    "differences",
    "outlay",
    "standing",
]
