"""Scripts run by the interpreters of other engines; they do not import Greenroom, except ``run_greenroom``."""
