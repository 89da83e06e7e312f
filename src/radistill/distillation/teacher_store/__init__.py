"""A teacher's distributions, written once and read in training: for one that does not fit beside the student."""

from radistill.distillation.teacher_store.read import StoredTeacher
from radistill.distillation.teacher_store.settings import TeacherStoreSettings
from radistill.distillation.teacher_store.write import store_teacher

__all__ = ["StoredTeacher", "TeacherStoreSettings", "store_teacher"]
