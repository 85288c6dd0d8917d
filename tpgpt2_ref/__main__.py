from .cli import main
from .parallel.launch import leave

leave(main())
