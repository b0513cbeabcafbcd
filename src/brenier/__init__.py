"""Neural optimal transport through Hamilton–Jacobi equations."""

import importlib.metadata

from brenier import callbacks as callbacks
from brenier import cells as cells
from brenier import costs as costs
from brenier import datasets as datasets
from brenier import hamiltonian as hamiltonian
from brenier import images as images
from brenier import metrics as metrics
from brenier import networks as networks
from brenier import state_costs as state_costs
from brenier.certificate import Certificate as Certificate
from brenier.certificate import certificate as certificate
from brenier.discrepancies import energy_distance as energy_distance
from brenier.errors import BrenierError as BrenierError
from brenier.errors import BrenierWarning as BrenierWarning
from brenier.errors import DivergenceError as DivergenceError
from brenier.errors import FileFormatError as FileFormatError
from brenier.errors import InputError as InputError
from brenier.errors import LostProcessError as LostProcessError
from brenier.errors import OutputError as OutputError
from brenier.errors import UnsupportedProblemError as UnsupportedProblemError
from brenier.estimators import DIOTMTransport as DIOTMTransport
from brenier.estimators import HOTATransport as HOTATransport
from brenier.estimators import NCFTransport as NCFTransport
from brenier.fit import fit as fit
from brenier.flow import FlowTransport as FlowTransport
from brenier.gaussian import GaussianPotential as GaussianPotential
from brenier.many import fit_many as fit_many
from brenier.methods import DIOTM as DIOTM
from brenier.methods import HJPINN as HJPINN
from brenier.methods import HOTA as HOTA
from brenier.methods import NCF as NCF
from brenier.problem import TransportProblem as TransportProblem
from brenier.serialization import load as load
from brenier.serialization import save as save
from brenier.solution import Solution as Solution
from brenier.transport import CharacteristicTransport as CharacteristicTransport
from brenier.transport import MapTransport as MapTransport
from brenier.transport import RefinedTransport as RefinedTransport
from brenier.transport import Transport as Transport
from brenier.verdict import evaluate as evaluate

__version__ = importlib.metadata.version("brenier")
