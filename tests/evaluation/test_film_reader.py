"""The film reader against ``predict`` on a store, its order, its refusals and what it holds in memory."""

import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data import dicom_files

from cxrlib import UserError
from cxrlib.data import batches, film_quality, records, store
