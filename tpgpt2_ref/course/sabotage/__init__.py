"""The sabotage lab: a patient with one hidden bug, or none; instruments that cost a point each; a diagnosis.

    patient = sabotage.admit(7)        two ranks, one small GPT-2, something wrong, or nothing
    patient.error_by_layer()           an instrument
    patient.diagnose("bias-twice")     right, or what speaks against it
    sabotage.bugs()                    the names to choose from

    patient.py    what the reader holds: instruments, points, the diagnosis
    ward.py       what runs on the ranks: the forward, watched
    illnesses.py  the bugs. Whoever wants to find them by their symptoms reads no further
"""
from .patient import Patient, admit, bugs

__all__ = ["Patient", "admit", "bugs"]
