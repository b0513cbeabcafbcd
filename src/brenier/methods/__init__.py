"""Methods: hyper-parameters and three pure functions `init / step / extract`, driven by `brenier.fit`."""

from brenier.methods._base import Method as Method
from brenier.methods.diotm import DIOTM as DIOTM
from brenier.methods.hota import HOTA as HOTA
from brenier.methods.ncf import NCF as NCF
from brenier.methods.pinn import HJPINN as HJPINN
