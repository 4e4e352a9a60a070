"""Faces into the records of shards or pictures: `tokenflow find-faces` for launchers that want a file.

python tools/find_faces.py shards --workers 8
python tools/find_faces.py shards --model face_detection_yunet_2023mar.onnx --workers 8
"""

from __future__ import annotations

import sys

from tokenflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["find-faces", *sys.argv[1:]]))
